"""What nginx/console.conf promises beyond what every web server does (test_reverse_proxies.py), in a real nginx."""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess

import pytest
from conftest import ROOT, free_port, program
from test_resolver import resolver
from test_resolver import websockify as asking_websockify
from test_shipped_nginx import Nginx, write_configuration
from webservers import (
    HOST,
    Front,
    Upstreams,
    asserted,
    forged,
    make_certificate,
    nginx,
    recorder,
    web_server,
    write_nginx_main,
)
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen, websockify

from vnctoken.tokens import fingerprint

NAMES = ("vnctoken", "opennebula-rpc", "console")
HSTS_OFF, HSTS_ON = "#add_header Strict-Transport-Security", "add_header Strict-Transport-Security"


def checked(folder, changes=(), names=("console",)):
    """Return what nginx says about the shipped files."""
    make_certificate(folder, HOST)
    (folder / "log").mkdir()
    write_configuration(Nginx(folder, free_port(), free_port()), 2644, 2633, [n for n in names if n != "console"])
    nginx(Front("nginx", folder, free_port(), free_port(), Upstreams(2633, 2644, 29877)), changes)
    main = write_nginx_main(folder, names)
    tried = subprocess.run(
        [program("nginx"), "-t", "-p", folder, "-e", "stderr", "-c", main], capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stderr
    return [line for line in tried.stderr.splitlines() if "syntax is ok" not in line and "is successful" not in line]


@pytest.mark.parametrize("names", [("console",), NAMES, NAMES[::-1]])
def test_nginx_takes_it_alone_and_with_the_other_two_without_a_warning(tmp_path, names):
    assert checked(tmp_path, names=names) == []


def test_hsts_is_off_until_the_operator_switches_it_on(tmp_path):
    with web_server("nginx", Upstreams(1, 2, 3)) as front:
        assert "strict-transport-security" not in front.request("GET", "/console.html").headers
    with web_server("nginx", Upstreams(1, 2, 3), [(HSTS_OFF, HSTS_ON)]) as front:
        for path in ("/console.html", "/novnc/core/rfb.js", "/no.html"):
            headers = front.request("GET", path).headers
            assert headers["strict-transport-security"] == "max-age=31536000"
            assert headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in front.request("GET", "/", secure=False).headers


def test_a_portal_elsewhere_may_embed_consoles_once_it_is_named():
    named = "frame-ancestors 'self' https://portal.example.org"
    shipped = (ROOT / "nginx" / "console.conf").read_text(encoding="utf-8")
    assert f'# "{named}".' in shipped, "the comment shows what to write"
    with web_server("nginx", Upstreams(1, 2, 3), [("\"frame-ancestors 'self'\" always", f'"{named}" always')]) as front:
        assert front.request("GET", "/console.html").headers["content-security-policy"] == named


def failed_console(front):
    """Ask for a console with a wrong token and return the line about it in the access log."""
    with pytest.raises(HandshakeRefusedError) as caught:
        WebSocket.connect(front.open(), f"/websockify?token={secrets.token_hex(16)}", {"Host": HOST})
    assert caught.value.status == 502
    front.process.stop()
    return next(line for line in front.written.splitlines() if "/websockify" in line)


def test_the_access_log_tells_a_proxy_that_is_down_from_a_token_it_does_not_know(tmp_path):
    with web_server("nginx", Upstreams(1, 2, free_port())) as front:
        assert re.search(r'"GET /websockify" 502 .* upstream 502 -$', failed_console(front))
    port = free_port()
    with websockify(tmp_path, port), web_server("nginx", Upstreams(1, 2, port)) as front:
        assert re.search(r'"GET /websockify" 502 .* upstream 502 \d\.\d{3}$', failed_console(front))


@pytest.mark.parametrize(
    ("upgrade", "connection"), [("websocket", "upgrade"), ("WebSocket", "upgrade"), ("h2c", "close"), (None, "close")]
)
def test_just_websockets_are_upgraded(upgrade, connection):
    asked = {"Upgrade": upgrade, "Connection": "upgrade"} if upgrade else {}
    with recorder() as (port, seen), web_server("nginx", Upstreams(1, 2, port)) as front:
        front.request("POST", "/websockify?token=x", b"", asked)
    ((path, headers, _),) = seen
    assert path == "/websockify?token=x"
    assert headers.get_all("Connection") == [connection]


def test_no_client_says_who_he_is_where_headers_with_an_underscore_are_let_through_either():
    changes = [("server_tokens off;", "server_tokens off; underscores_in_headers on;")]
    with recorder() as (port, seen), web_server("nginx", Upstreams(port, port, port), changes) as front:
        for path in ("/RPC2", "/RPC2/vnctoken"):
            assert front.status(forged(path)) == 200
    for _, headers, _ in seen:
        assert asserted(headers) == {"X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Proto": ["https"]}
    assert len(seen) == 2


# What is in front of "auth_request" and the next line until the operator has a resolver.
ASKING = (("#auth_request", "auth_request"), ("#set $args", "set $args"))


def test_the_resolver_can_be_asked_by_taking_away_two_comment_signs(tmp_path):
    assert checked(tmp_path, ASKING) == []


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    """Run nginx as shipped, with the resolver asked, in front of a websockify and a resolver.

    Return what comes of asking for a console with a query from an address, and the tokens for the clients 127.0.0.1,
    ::1, somebody else, and everybody.
    """
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(screen())
        clients = ("127.0.0.1", "::1", "203.0.113.9", "")
        grants = [{"port": port, "client": client} for client in clients]
        answering = stack.enter_context(resolver(tmp_path_factory.mktemp("resolver") / "tokens", *grants))
        proxy = stack.enter_context(asking_websockify(answering.source))
        changes = (*ASKING, ("http://127.0.0.1:2647/", f"http://{answering.at}/"))
        front = stack.enter_context(web_server("nginx", Upstreams(1, 2, proxy.port), changes))

        def status(query, address="127.0.0.1", path="/websockify", **headers):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            try:
                console = WebSocket.connect(front.open(address=address), f"{path}?{query}", {"Host": HOST, **named})
            except HandshakeRefusedError as refused:
                return refused.status
            with contextlib.closing(console):
                assert console.receive_exactly(len(GREETING)) == GREETING
            return 101

        status.front, status.resolver, status.proxy = front, answering, proxy
        yield status, answering.tokens
    for token in answering.tokens:
        assert token not in front.written + answering.process.output


@pytest.mark.parametrize("path", ["/websockify", "/novnc/websockify"])
def test_a_token_for_one_client_opens_for_that_client_alone(asking, path):
    status, (ipv4, ipv6, elsewhere, everybody) = asking
    tokens = (ipv4, ipv6, elsewhere, everybody)
    opened = {
        address: [status(f"token={token}", address, path) for token in tokens] for address in ("127.0.0.1", "::1")
    }
    assert opened == {"127.0.0.1": [101, 403, 403, 101], "::1": [403, 101, 403, 101]}


def test_without_the_web_server_a_token_for_one_client_opens_nothing(asking):
    status, (_, _, elsewhere, everybody) = asking
    assert (status.proxy(elsewhere), status.proxy(everybody)) == (False, True)


@pytest.mark.parametrize("header", ["X_Real_IP", "x_real_ip", "X_Forwarded_For"])
def test_what_the_browser_says_of_its_address_does_not_count(asking, header):
    status, (_, _, elsewhere, _) = asking
    assert status(f"token={elsewhere}", **{header: "203.0.113.9"}) == 403


@pytest.mark.parametrize("token", ["", secrets.token_hex(16), "let%20me%20in", "a?b", "a/../b", "x" * 5000])
def test_a_token_that_is_none_is_refused_before_the_proxy_sees_it(asking, token):
    status, _ = asking
    assert status(f"token={token}") == 403


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("token={ours}&token={theirs}", 101),
        ("token={theirs}&token={ours}", 403),
        ("Token={ours}&token={theirs}", 101),
        ("TOKEN={theirs}&token={ours}", 403),
        ("x=1&token={ours}", 101),
        ("%74oken={theirs}&token={ours}", 101),
        ("%74oken={theirs}", 403),
    ],
)
def test_the_proxy_opens_the_very_token_that_nginx_asked_about(asking, query, expected):
    """Were it to read another one, it would be the client's own token that is asked about, and a stolen one opened."""
    status, (ours, _, theirs, _) = asking
    before = len(status.resolver.process.lines)
    assert status(query.format(ours=ours, theirs=theirs)) == expected
    opened = [line for line in status.resolver.process.lines[before:] if line.endswith(" opened")]
    assert not [line for line in opened if fingerprint(theirs) in line]


def test_an_encoded_token_is_the_same_token(asking):
    status, (ours, *_) = asking
    assert status(f"token=%{ord(ours[0]):02x}{ours[1:]}") == 101


def test_nobody_outside_can_ask_the_resolver(asking):
    status, (ours, *_) = asking
    for path in ("/vnctoken-resolver", f"/vnctoken-resolver?token={ours}", f"/token/{ours}"):
        assert status.front.request("GET", path).status == 404


def test_without_a_resolver_consoles_open_as_shipped_and_none_does_where_it_is_to_be_asked():
    with recorder() as (port, seen):
        with web_server("nginx", Upstreams(1, 2, port)) as front:
            assert front.request("POST", "/websockify?token=x", b"").status == 200
        asked_in_vain = ("http://127.0.0.1:2647/", f"http://127.0.0.1:{free_port()}/")
        with web_server("nginx", Upstreams(1, 2, port), (*ASKING, asked_in_vain)) as front:
            assert front.request("POST", "/websockify?token=x", b"").status == 500
    assert len(seen) == 1


@pytest.mark.parametrize("setting", ["error_log", "access_log"])
def test_no_log_is_a_device_that_nginx_would_give_to_its_own_user_when_logs_are_reopened(setting):
    shipped = (ROOT / "nginx" / "console.conf").read_text(encoding="utf-8")
    places = re.findall(rf"^ *{setting} (\S+)", shipped, re.MULTILINE)
    assert places
    assert {place.rpartition("/")[0] for place in places} == {"/var/log/nginx"}


@pytest.mark.parametrize(("secure", "status"), [(True, 200), (False, 301)])
def test_both_ports_answer_over_ipv6_as_well(secure, status):
    with web_server("nginx", Upstreams(1, 2, 3)) as front:
        assert front.request("GET", "/console.html", secure=secure, address="::1").status == status
