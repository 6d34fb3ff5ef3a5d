"""Whose headers count: where a request came from, told by who connected and by what the proxies in front wrote.

First alone; then with the service behind real web servers, and with clients who write such headers themselves.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import ssl
import string
import xmlrpc.client
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from authorities import DAY, Authority
from conftest import START_SECONDS, Service, vnctoken_server
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given
from hypothesis import strategies as st
from test_shipped_nginx import nginx_front
from twisted.web.http_headers import Headers
from webservers import CERTIFICATES, HOST, Upstreams, set_to, until, web_server

from vnctoken.auth import ASSERTIONS
from vnctoken.auth.proxies import UNIX_CLIENT, Origin, TrustedProxies

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = TrustedProxies(())
PROXIES = TrustedProxies([ipaddress.ip_network(network) for network in ("10.1.2.0/24", "2001:db8:1::/48")])
FAR, NEAR = "10.1.2.7", "10.1.2.8"
CLIENT = "203.0.113.9"


def forwarded(*lines, **others):
    """Return the headers of a request with these lines X-Forwarded-For, as bytes or text, and others."""
    headers = Headers({name.replace("_", "-"): [value] for name, value in others.items()})
    if lines:
        raw = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
        headers.setRawHeaders(b"X-Forwarded-For", raw)
    return headers


def client(*lines, peer=NEAR):
    """Return whom a request is counted for that a trusted proxy sent with these lines X-Forwarded-For."""
    return PROXIES.origin(peer, forwarded(*lines)).client


# Who connects


def test_what_a_trusted_proxy_says_counts():
    headers = forwarded(CLIENT, X_Forwarded_Proto="https", X_Auth_Username="xenia")
    assert PROXIES.origin(NEAR, headers) == Origin(CLIENT, trusted=True, secure=True, presumed=())


@pytest.mark.parametrize("proxies", [NOBODY, PROXIES])
def test_what_anybody_else_says_does_not_and_is_named(proxies):
    headers = forwarded(FAR, X_Forwarded_Proto="https", REMOTE_USER="xenia")
    presumed = ("X-Forwarded-For", "X-Forwarded-Proto")
    assert proxies.origin(CLIENT, headers) == Origin(CLIENT, trusted=False, secure=False, presumed=presumed)


@pytest.mark.parametrize("name", ASSERTIONS)
@pytest.mark.parametrize("spelt", [str, str.upper, str.lower])
@pytest.mark.parametrize("value", ["", "xenia"])
def test_every_header_that_only_a_proxy_may_send_is_noticed_however_it_is_spelt(name, spelt, value):
    headers = Headers({spelt(name): [value]})
    assert PROXIES.origin(CLIENT, headers).presumed == (name,)
    assert PROXIES.origin(NEAR, headers).presumed == ()


def test_other_headers_are_for_everybody():
    headers = Headers({"Authorization": ["Basic eDp5"], "X-ONEGATE-TOKEN": ["x"], "X-Real-IP": [FAR], "Host": ["x"]})
    assert PROXIES.origin(CLIENT, headers) == Origin(CLIENT, trusted=False, secure=False, presumed=())


@pytest.mark.parametrize("proxies", [NOBODY, PROXIES])
def test_who_connects_to_the_unix_socket_is_a_trusted_proxy(proxies):
    assert proxies.origin(None, forwarded(CLIENT, X_Forwarded_Proto="https")) == Origin(
        CLIENT, trusted=True, secure=True, presumed=()
    )
    assert proxies.origin(None, forwarded()) == Origin(UNIX_CLIENT, trusted=True, secure=False, presumed=())


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.0", True),
        ("10.1.2.255", True),
        ("10.1.3.0", False),
        ("10.1.1.255", False),
        ("::ffff:10.1.2.8", True),
        ("::FFFF:10.1.3.8", False),
        ("2001:db8:1::9", True),
        ("2001:DB8:1:0:0::9", True),
        ("2001:db8:2::9", False),
        ("::10.1.2.8", False),
        ("10.1.2", False),
        ("", False),
    ],
)
def test_a_proxy_is_known_by_its_address_in_whatever_form_it_comes(peer, trusted):
    assert PROXIES.origin(peer, forwarded()).trusted is trusted


def test_an_address_is_trusted_alone_where_alone_it_is_named():
    local = TrustedProxies([ipaddress.ip_network("127.0.0.1")])
    assert [local.origin(peer, forwarded()).trusted for peer in ("127.0.0.1", "127.0.0.2", "::1")] == [
        True,
        False,
        False,
    ]


# X-Forwarded-For


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((CLIENT,), CLIENT),
        (("6.6.6.6, " + CLIENT,), CLIENT),
        ((f"{CLIENT}, {FAR}",), CLIENT),
        ((f"6.6.6.6, {CLIENT}, {FAR}",), CLIENT),
        ((f"{FAR}, {CLIENT}, {FAR}, 10.1.2.9",), CLIENT),
        ((CLIENT, FAR), CLIENT),
        (("6.6.6.6", f"{CLIENT},{FAR}"), CLIENT),
        ((f"{FAR}, 10.1.2.9",), FAR),
        ((FAR,), FAR),
    ],
)
def test_the_caller_is_the_right_most_hop_that_is_no_trusted_proxy(lines, expected):
    assert client(*lines) == expected


def test_the_caller_behind_two_trusted_proxies_in_a_row_is_who_connected_to_the_first():
    """The first is sent a lie, and both add who connected to them, as nginx's $proxy_add_x_forwarded_for does."""
    assert client(f"6.6.6.6, {FAR}, {CLIENT}, {FAR}", peer=NEAR) == CLIENT


@pytest.mark.parametrize(
    ("hop", "expected"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:54321", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:54321", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
        ("2001:DB8:0:0::9", "2001:db8::9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:db8::9]:54321", "2001:db8::9"),
        ("fe80::9%eth0", "fe80::9"),
        ("[fe80::9%eth0]:54321", "fe80::9"),
        ("fe80::9%anything that one likes", "fe80::9"),
        ("\t 203.0.113.9 ", "203.0.113.9"),
    ],
)
def test_hops_are_read_in_every_form_that_proxies_write(hop, expected):
    assert client(hop) == expected


@pytest.mark.parametrize(
    "hop",
    [
        "",
        " ",
        ",",
        "unknown",
        "_hidden",
        "-",
        "localhost",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.09",
        "203.0.113.9/32",
        "203.0.113.9:",
        "203.0.113.9:80:80",
        "2001:db8::9:54321:1:2:3:4:5:6",
        "[2001:db8::9",
        "2001:db8::9]",
        "[]:80",
        "[2001:db8::9]80",
        "for=203.0.113.9",
        '"203.0.113.9"',
        b"\xb2.0.113.9",
        b"\xff\xfe",
        "x" * 10_000,
    ],
)
def test_what_is_no_address_tells_nothing_nor_does_what_is_left_of_it(hop):
    assert client(hop) == NEAR
    written = hop if isinstance(hop, bytes) else hop.encode()
    assert client(b"6.6.6.6, " + written + b", " + FAR.encode()) == FAR


def test_without_the_header_the_proxy_itself_is_the_caller():
    assert client() == NEAR


# X-Forwarded-Proto


@pytest.mark.parametrize(
    ("values", "secure"),
    [
        (["https"], True),
        ([], False),
        (["http"], False),
        ([""], False),
        (["https, http"], False),
        (["http, https"], False),
        (["https", "http"], False),
        (["https", "https"], False),
        (["wss"], False),
    ],
)
def test_a_request_came_over_tls_where_that_is_said_once_and_clearly(values, secure):
    assert PROXIES.origin(NEAR, Headers({"X-Forwarded-Proto": values})).secure is secure


# Whatever comes

ADDRESSES = st.ip_addresses().map(str)
SPELLINGS = st.sampled_from(["{}", " {} ", "{}:4711", "[{}]", "[{}]:4711"])
RAW = st.binary(max_size=60).map(lambda raw: raw.translate(None, b"\r\n\0"))
NAMES = st.sampled_from([*ASSERTIONS, "Authorization", "X-Real-IP", "Forwarded"])
FORGED = st.dictionaries(NAMES.map(str.encode), st.lists(RAW, min_size=1, max_size=3), max_size=8)


def plain(address):
    """Return an address as we write it."""
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def trusted(address):
    return PROXIES.origin(address, Headers()).trusted


def spelt(address, spelling):
    """Return an address as some proxy writes it; a bare IPv6 address cannot have a port."""
    return (spelling if "[" in spelling or ":" not in address else spelling.replace(":4711", "")).format(address)


@given(peer=ADDRESSES, forged=FORGED)
def test_a_stranger_gains_nothing_whatever_he_sends(peer, forged):
    headers = Headers(forged)
    if trusted(peer):
        assert PROXIES.origin(peer, headers).presumed == ()
        return
    origin = PROXIES.origin(peer, headers)
    assert (origin.client, origin.trusted, origin.secure) == (plain(peer), False, False)
    assert {*origin.presumed} == {name for name in ASSERTIONS if headers.hasHeader(name)}


@given(
    caller=ADDRESSES,
    lies=st.lists(RAW, max_size=3),
    chain=st.lists(st.integers(1, 254).map("10.1.2.{}".format) | st.just("2001:db8:1::9"), min_size=1, max_size=4),
    spellings=st.lists(SPELLINGS, min_size=4, max_size=4),
    own_lines=st.booleans(),
)
@example(caller="fe80::1%eth0", lies=[b"6.6.6.6"], chain=[FAR, NEAR], spellings=["{}"] * 4, own_lines=False)
def test_behind_any_chain_of_trusted_proxies_the_caller_is_who_connected_to_the_first(
    caller, lies, chain, spellings, own_lines
):
    if trusted(caller):
        return
    *between, peer = chain
    written = [spelt(hop, form).encode() for hop, form in zip([caller, *between], spellings, strict=False)]
    # Each proxy adds to the line it was sent, or writes one of its own below it.
    lines = [*lies, *written] if own_lines else [b", ".join([*lies, *written])]
    origin = PROXIES.origin(peer, forwarded(*lines))
    assert (origin.client, origin.trusted) == (plain(caller.partition("%")[0]), True)


@given(peer=st.none() | st.just(NEAR), lines=st.lists(RAW, max_size=4))
def test_the_caller_is_an_address_and_nothing_else_that_could_get_into_a_log(peer, lines):
    named = PROXIES.origin(peer, forwarded(*lines)).client
    assert named == UNIX_CLIENT or str(ipaddress.ip_address(named)) == named
    assert {*named} <= {*string.hexdigits, *".:", *UNIX_CLIENT}


# The service behind real web servers

OPENED, REFUSED = 0, 0x0100
XENIAS, REMYS, ALICES = 35, 36, 0
REMY = "remy@EXAMPLE.ORG"
PROXY, STRANGER, USER = "127.0.0.1", "127.0.0.2", "127.0.0.7"
"""Where the web server calls from, who goes past it, and who goes through it."""


@dataclass
class House:
    """A service that trusts 127.0.0.1 and its Unix socket, and certificates of the authority in a file."""

    service: Service
    oned_port: int
    socket: Path
    authority: Path
    certificates: dict

    def forgery(self, name):
        """Return what of ASSERTIONS would be worth forging, all that is needed with it, and whose VM it opens."""
        pem = quote(ssl.DER_cert_to_PEM_cert(self.certificates["right"].der))
        values = {"SSL_CLIENT_CERT": (pem, XENIAS), "REMOTE_USER": (REMY, REMYS)}
        values |= {"X-SSL-Client-Cert": (pem, XENIAS), "X-Auth-Username": (REMY, REMYS)}
        values |= {"X-Forwarded-For": ("6.6.6.6", ALICES), "X-Forwarded-Proto": ("https", ALICES)}
        value, vm_id = values[name]
        return {name: value}, vm_id

    def call(self, address, vm_id, headers=(), session=""):
        """Return what is answered to somebody who calls the service from an address, past the web servers."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.service.port, timeout=START_SECONDS, source_address=(address, 0)
        )
        return answer(connection, session, vm_id, headers)

    def logs(self, line):
        """Wait until the log has a line."""
        until(lambda: line in self.service.log.read_text("utf-8"))


@pytest.fixture(scope="module")
def house(tmp_path_factory, cloud):
    folder = tmp_path_factory.mktemp("house")
    login = folder / "one" / "var" / ".one" / "vnctoken_auth"
    login.parent.mkdir(parents=True)
    login.write_text("serveradmin:serveradmin-secret-for-tests\n", encoding="utf-8")
    ours, others = Authority(folder), Authority(folder, "others")
    key = rsa.generate_private_key(65537, 4096)
    certificates = {
        "right": ours.issue(),
        "large": ours.issue(key=key, names=[f"host-{number}.department.example.org" for number in range(200)]),
        "unknown": ours.issue((("C", "XX"), ("O", "onelab"), ("CN", "nobody"))),
        "expired": ours.issue(expires=-DAY),
        "another's": others.issue(),
    }
    settings = (
        ":auth: [opennebula, x509, remote, basic]",
        f":trusted_proxies: [127.0.0.1, 'unix:{folder}/proxy.sock']",
        ":auth_failures: 1000000/s",
    )
    with vnctoken_server(folder / "one", cloud.url, "\n".join(settings)) as service:
        oned_port = int(cloud.url.split(":")[2].split("/")[0])
        yield House(service, oned_port, folder / "proxy.sock", ours.file, certificates)


@pytest.fixture(scope="module", params=["tcp", "unix"])
def nginx(request, tmp_path_factory, house):
    """Run nginx with the shipped files, which ask for client certificates, before the port or the Unix socket."""
    changes = [
        *set_to(CERTIFICATES["nginx"], house.authority),
        ("server_tokens off;", "server_tokens off; underscores_in_headers on;"),
    ]
    port = house.service.port
    if request.param == "unix":
        port = 2
        changes.append(("        proxy_pass http://127.0.0.1:2;\n", ""))
        changes.append(("#proxy_pass http://unix:/run/vnctoken/proxy.sock", f"proxy_pass http://unix:{house.socket}"))
    with nginx_front(tmp_path_factory.mktemp("nginx"), port, house.oned_port, changes) as front:
        yield front


def answer(connection, session, vm_id, headers=()):
    """Return the code that a call for a token is answered with, or the HTTP status if there is no answer."""
    body = xmlrpc.client.dumps((session, vm_id), "one.vm.vnctokenonly")
    with contextlib.closing(connection):
        connection.request("POST", "/RPC2/vnctoken", body, dict(headers))
        answered = connection.getresponse()
        if answered.status != http.HTTPStatus.OK:
            return f"HTTP {answered.status}"
        ok, _, code = xmlrpc.client.loads(answered.read())[0][0]
        assert ok is (code == OPENED)
        return code


def through(nginx, vm_id, headers=(), session="", client=None):
    """Return what is answered to a user who calls the web server, with a certificate or without."""
    trust = nginx.trust
    if client is not None:
        trust.load_cert_chain(client.file)
    connection = http.client.HTTPSConnection(
        "127.0.0.1", nginx.opennebula_port, timeout=START_SECONDS, context=trust, source_address=(USER, 0)
    )
    return answer(connection, session, vm_id, headers)


BASIC = {"Authorization": "Basic " + base64.b64encode(b"alice:secret").decode()}


@pytest.mark.parametrize("name", ASSERTIONS)
def test_what_a_client_forges_has_no_effect_through_nginx(nginx, house, name):
    lie, vm_id = house.forgery(name)
    assert through(nginx, vm_id, lie) == REFUSED
    assert through(nginx, vm_id, {name.lower(): lie[name]}) == REFUSED
    assert through(nginx, ALICES, lie, session="alice:secret") == OPENED


@pytest.mark.parametrize("name", ASSERTIONS)
def test_what_a_client_forges_is_refused_and_logged_when_he_goes_past_nginx(house, name):
    lie, vm_id = house.forgery(name)
    assert house.call(STRANGER, vm_id, lie) == REFUSED
    house.logs(f"{STRANGER} sent {name}, which only one of :trusted_proxies: may")
    assert house.call(STRANGER, vm_id, {name.lower(): ""}) == REFUSED
    assert house.call(STRANGER, vm_id, lie, session="alice:secret") == REFUSED
    assert house.call(STRANGER, ALICES, session="alice:secret") == OPENED


@pytest.mark.parametrize("name", ASSERTIONS[:4])
def test_those_very_words_would_count_if_the_web_server_said_them(house, name):
    words, vm_id = house.forgery(name)
    secure = {"X-Forwarded-For": USER, "X-Forwarded-Proto": "https"}
    assert house.call(PROXY, vm_id, words | secure) == OPENED
    assert house.call(PROXY, vm_id, words) == REFUSED, "it does not say that it got them over TLS"


def test_the_log_has_the_address_of_who_called_nginx_whatever_he_says(nginx, house):
    at = f"{USER} one.vm.vnctokenonly vm="
    before = house.service.log.read_text("utf-8").count(at)
    for lie in ("6.6.6.6", PROXY, STRANGER):
        assert through(nginx, ALICES, {"X-Forwarded-For": lie}, session="alice:secret") == OPENED
    until(lambda: house.service.log.read_text("utf-8").count(at) == before + 3)
    assert "6.6.6.6" not in house.service.log.read_text("utf-8")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("right", OPENED),
        ("large", OPENED),
        ("unknown", REFUSED),
        ("expired", "HTTP 400"),
        ("another's", "HTTP 400"),
        (None, REFUSED),
    ],
)
def test_a_certificate_of_the_right_authority_opens_a_console_through_nginx_and_no_other(nginx, house, kind, expected):
    client = house.certificates.get(kind)
    assert through(nginx, XENIAS, client=client) == expected
    # Nor is another one taken that he has heard of.
    lie, _ = house.forgery("X-SSL-Client-Cert")
    assert through(nginx, XENIAS, lie, client=client) == expected
    assert through(nginx, XENIAS, {"SSL_CLIENT_CERT": lie["X-SSL-Client-Cert"]}, client=client) == expected


@pytest.mark.parametrize("server", ["apache", "caddy"])
def test_the_service_reads_certificates_as_other_web_servers_write_them(house, server):
    upstreams = Upstreams(house.oned_port, house.service.port, 3)
    with web_server(server, upstreams, set_to(CERTIFICATES[server], house.authority)) as front:

        def code(kind=None):
            client = house.certificates.get(kind)
            connection = http.client.HTTPSConnection(HOST, timeout=START_SECONDS)
            connection.sock = front.open(client=client and client.file)
            return answer(connection, "", XENIAS)

        assert [code("right"), code("large"), code("unknown"), code()] == [OPENED, OPENED, REFUSED, REFUSED]


def test_a_password_is_taken_in_a_header_through_nginx_and_refused_past_it(nginx, house):
    """As it does not tell, past nginx, that it came over TLS."""
    assert through(nginx, ALICES, BASIC) == OPENED
    assert house.call(STRANGER, ALICES, BASIC) == REFUSED
    assert house.call(STRANGER, ALICES, BASIC | {"X-Forwarded-Proto": "https"}) == REFUSED


def test_none_of_what_was_sent_is_in_a_log(nginx, house):
    lie, vm_id = house.forgery("X-SSL-Client-Cert")
    assert through(nginx, vm_id, lie | BASIC, client=house.certificates["right"]) == OPENED
    assert house.call(STRANGER, vm_id, lie | BASIC) == REFUSED
    written = house.service.log.read_text("utf-8") + nginx.process.output
    written += "".join(path.read_text("utf-8") for path in nginx.folder.glob("*.log"))
    for secret in ("BEGIN", "secret", BASIC["Authorization"].split()[1]):
        assert secret not in written
