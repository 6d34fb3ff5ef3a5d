"""The shipped nginx files, in a real nginx, in front of a running service and oned."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import secrets
import socket
import ssl
import subprocess
import xmlrpc.client
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from authorities import DAY, Authority
from conftest import (
    ROOT,
    START_SECONDS,
    Running,
    free_port,
    ipv6_loopback,
    program,
    running,
    tokens_in,
    vnctoken_server,
)
from webservers import (
    TOKEN_OF_VM_0,
    VERSION,
    asserted,
    certificate_in,
    forged,
    make_certificate,
    recorder,
    replaced,
    tls_handshake,
    until,
    wait_for_port,
    write_nginx_main,
)

from vnctoken.auth import ASSERTIONS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Nginx:
    """An nginx that runs both shipped files, and where its things are."""

    folder: Path
    vnctoken_port: int = 0
    opennebula_port: int = 0
    process: Running | None = None

    @property
    def certificate(self):
        return self.folder / "certificate.pem"

    @property
    def trust(self):
        """An SSL context that trusts this server's certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))

    @property
    def vnctoken(self):
        return f"https://localhost:{self.vnctoken_port}/RPC2"

    @property
    def opennebula(self):
        return f"https://localhost:{self.opennebula_port}/RPC2"

    @property
    def access_log(self):
        return "".join(path.read_text(encoding="utf-8") for path in self.folder.glob("*.access.log"))

    def status(self, port, request, client=None):
        """Return the status of the answer to the bytes of a request; `client` has a certificate and its key."""
        trust = self.trust
        if client is not None:
            trust.load_cert_chain(client)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as plain,
            trust.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(request)
            return int(connection.makefile("rb").readline().split(b" ")[1])

    def request(self, port, path, body=b"", headers=(), host="127.0.0.1"):
        """Return status and body of one https POST."""
        connection = http.client.HTTPSConnection(host, port, timeout=START_SECONDS, context=self.trust)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"Content-Type": "text/xml", **dict(headers)})
            answer = connection.getresponse()
            return answer.status, answer.read()


NAMES = ("vnctoken", "opennebula-rpc")


def write_configuration(nginx, vnctoken_upstream, oned_upstream, names=NAMES, changes=()):
    """Write a configuration around the shipped files, in which just ports and paths are others; return its path.

    `changes` are further replacements, each of something that every one of the files says.
    """
    folder = nginx.folder
    certificate = (
        ("/etc/ssl/certs/{}.pem", str(folder / "certificate.pem")),
        ("/etc/ssl/private/{}.key", str(folder / "key.pem")),
    )
    shipped = {
        "vnctoken": (
            ("listen 2645 ssl;", f"listen 127.0.0.1:{nginx.vnctoken_port} ssl;"),
            ("listen [::]:2645 ssl;", f"listen [::1]:{nginx.vnctoken_port} ssl;"),
            *((old.format("vnctoken.example.org"), new) for old, new in certificate),
            ("/var/log/nginx/", f"{folder}/"),
            ("http://127.0.0.1:2644;", f"http://127.0.0.1:{vnctoken_upstream};"),
        ),
        "opennebula-rpc": (
            ("listen 2634 ssl;", f"listen 127.0.0.1:{nginx.opennebula_port} ssl;"),
            ("listen [::]:2634 ssl;", f"listen [::1]:{nginx.opennebula_port} ssl;"),
            *((old.format("one.example.org"), new) for old, new in certificate),
            ("/var/log/nginx/", f"{folder}/"),
            ("http://127.0.0.1:2644;", f"http://127.0.0.1:{vnctoken_upstream};"),
            ("http://127.0.0.1:2633;", f"http://127.0.0.1:{oned_upstream};"),
        ),
    }
    for name in names:
        text = (ROOT / "nginx" / f"{name}.conf").read_text(encoding="utf-8")
        (folder / f"{name}.conf").write_text(replaced(text, (*shipped[name], *changes)), encoding="utf-8")
    return write_nginx_main(folder, names)


@contextlib.contextmanager
def nginx_front(folder, vnctoken_upstream, oned_upstream, changes=()):
    """Run nginx with both shipped files for the time of a block."""
    binary = program("nginx")
    if not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    nginx = Nginx(folder, free_port(), free_port())
    make_certificate(folder)
    main = write_configuration(nginx, vnctoken_upstream, oned_upstream, changes=changes)
    with running(binary, "-p", folder, "-e", "stderr", "-c", main) as process:
        nginx.process = process
        wait_for_port(nginx.vnctoken_port, process)
        wait_for_port(nginx.opennebula_port, process)
        yield nginx


@pytest.fixture(scope="module")
def behind(tmp_path_factory, cloud):
    with vnctoken_server(tmp_path_factory.mktemp("one"), cloud.url) as service:
        yield service


@pytest.fixture(scope="module")
def nginx(tmp_path_factory, cloud, behind):
    oned_port = int(cloud.url.split(":")[2].split("/")[0])
    with nginx_front(tmp_path_factory.mktemp("nginx"), behind.port, oned_port) as front:
        yield front


def curl(nginx, *args):
    """Return what curl prints; it trusts the server's certificate and no other."""
    return subprocess.run(
        [program("curl"), "--silent", "--show-error", "--max-time", "20", "--cacert", nginx.certificate, *args],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("names", [("vnctoken",), ("opennebula-rpc",), ("vnctoken", "opennebula-rpc")])
def test_nginx_takes_the_shipped_files_alone_and_together_without_a_warning(tmp_path, names):
    make_certificate(tmp_path)
    main = write_configuration(Nginx(tmp_path, free_port(), free_port()), 2644, 2633, names)
    tried = subprocess.run(
        [program("nginx"), "-t", "-p", tmp_path, "-e", "stderr", "-c", main],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr
    assert tried.stderr.splitlines() == [
        f"nginx: the configuration file {main} syntax is ok",
        f"nginx: configuration file {main} test is successful",
    ]


def test_a_portal_gets_its_token_over_https(nginx, behind):
    with xmlrpc.client.ServerProxy(nginx.vnctoken, context=nginx.trust) as server:
        ok, console, code = server.one.vm.vnctoken("alice:secret", 0)
        assert (ok, code) == (True, 0)
        assert tokens_in(behind.tokens / "one-0")[console["Token"]] == "dummy-host-1:5900"
        assert server.one.vm.vnctoken("alice:wrong", 0)[0::2] == [False, 0x0100]


@pytest.mark.parametrize("verb", ["POST", "GET"])
def test_curl_gets_its_token_with_either_verb(nginx, behind, verb):
    answer = curl(nginx, "-X", verb, "-H", "Content-Type: text/xml", "--data", TOKEN_OF_VM_0, nginx.vnctoken)
    _, token, code = xmlrpc.client.loads(answer)[0][0]
    assert code == 0
    assert tokens_in(behind.tokens / "one-0")[token] == "dummy-host-1:5900"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_ports_answer_over_ipv4_and_ipv6(nginx, address):
    for port, path in ((nginx.vnctoken_port, "/RPC2"), (nginx.opennebula_port, "/RPC2/vnctoken")):
        status, body = nginx.request(port, path, TOKEN_OF_VM_0, host=address)
        assert status == 200
        assert xmlrpc.client.loads(body)[0][0][0] is True


def test_one_address_serves_oned_and_vnctoken(nginx):
    def first(path, call):
        status, body = nginx.request(nginx.opennebula_port, path, call)
        assert status == 200
        return xmlrpc.client.loads(body)[0][0]

    for path in ("/RPC2", "/RPC2/", "/RPC2?who=cares"):
        assert first(path, VERSION)[:2] == [True, "6.10.0"]
    for path in ("/RPC2/vnctoken", "/RPC2/vnctoken/"):
        ok, _, code = first(path, TOKEN_OF_VM_0)
        assert (ok, code) == (True, 0)
    assert first("/RPC2/vnctoken", VERSION)[2] == 0x1000, "vnctoken does not know oned's methods"


def test_oned_gets_a_length_even_from_a_client_that_sends_chunks(nginx):
    answer = curl(nginx, "-H", "Transfer-Encoding: chunked", "--data", VERSION, nginx.opennebula)
    assert xmlrpc.client.loads(answer)[0][0][:2] == [True, "6.10.0"]


@pytest.mark.parametrize("path", ["/", "/RPC", "/rpc2", "/metrics", "/RPC2/../metrics", "/vnctoken"])
def test_other_paths_are_not_found(nginx, path):
    for port in (nginx.vnctoken_port, nginx.opennebula_port):
        assert nginx.request(port, path, VERSION)[0] == 404


@pytest.mark.parametrize("path", ["/RPC2", "/RPC2/", "/RPC2/vnctoken", "/RPC2x?y=1", "//RPC2"])
def test_every_path_that_begins_with_rpc2_reaches_vnctoken(nginx, path):
    assert nginx.request(nginx.vnctoken_port, path, TOKEN_OF_VM_0)[0] == 200


def test_a_body_over_64_kib_is_refused_by_nginx_already(nginx):
    at_limit = TOKEN_OF_VM_0.encode().ljust(64 * 1024)
    for port, path in ((nginx.vnctoken_port, "/RPC2"), (nginx.opennebula_port, "/RPC2/vnctoken")):
        assert nginx.request(port, path, at_limit)[0] == 200
        assert nginx.request(port, path, at_limit + b" ")[0] == 413


def test_oned_may_be_sent_more(nginx):
    assert nginx.request(nginx.opennebula_port, "/RPC2", VERSION.encode().ljust(1_000_000))[0] == 200
    assert nginx.request(nginx.opennebula_port, "/RPC2", b" " * (10 * 1024 * 1024 + 1))[0] == 413


def test_plain_http_is_refused(nginx):
    for port in (nginx.vnctoken_port, nginx.opennebula_port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/RPC2", TOKEN_OF_VM_0)
            assert connection.getresponse().status == 400


@pytest.mark.parametrize(("protocol", "spoken"), [("1", False), ("1_1", False), ("1_2", True), ("1_3", True)])
def test_tls_is_1_2_or_1_3(nginx, protocol, spoken):
    for port in (nginx.vnctoken_port, nginx.opennebula_port):
        tried = tls_handshake(port, nginx.certificate, protocol)
        assert (tried.returncode == 0) is spoken
        assert ("alert protocol version" in tried.stderr) is not spoken
        if protocol == "1_2":
            assert "TLS session ticket:" not in tried.stdout


def test_answers_do_not_tell_nginx_version(nginx):
    answer = curl(nginx, "--include", f"https://localhost:{nginx.vnctoken_port}/")
    assert "nginx/" not in answer


def test_the_access_log_holds_no_session_and_no_token(nginx, behind):
    nginx.request(nginx.vnctoken_port, "/RPC2", TOKEN_OF_VM_0)
    token = list(tokens_in(behind.tokens / "one-0"))[-1]
    until(lambda: "POST /RPC2" in nginx.access_log)
    for secret in ("alice", "secret", token):
        assert secret not in nginx.access_log


def test_no_log_holds_a_credential_that_is_in_a_header_or_in_the_query(tmp_path):
    """While the service is down, as nginx then quotes the request in its error log."""
    secret = secrets.token_hex(16)
    basic = base64.b64encode(f"alice:{secret}".encode()).decode()
    credentials = {"Authorization": f"Basic {basic}", "X-ONEGATE-TOKEN": secret, "Referer": f"https://x/?{secret}"}
    down = free_port()
    with nginx_front(tmp_path, down, down) as nginx:
        for port in (nginx.vnctoken_port, nginx.opennebula_port):
            path = f"/RPC2/vnctoken?Signature={secret}"
            assert nginx.request(port, path, headers=credentials)[0] == 502
        # The log's last field is for who wonders why.
        refused = re.compile(r'"POST /RPC2/vnctoken HTTP/1.1" 502 .* upstream 502 -$', re.MULTILINE)
        until(lambda: len(refused.findall(nginx.access_log)) == 2)
    written = nginx.process.output + "".join(path.read_text("utf-8") for path in tmp_path.glob("*.log"))
    for part in (secret, basic, "alice", "Signature"):
        assert part not in written


# Where each file sends what on to vnctoken, and to oned.
TO_VNCTOKEN = (("vnctoken_port", "/RPC2/x"), ("opennebula_port", "/RPC2/vnctoken"))
TO_ONED = (("opennebula_port", "/RPC2/x"),)


def sent_on(nginx, seen, sites, *lines, client=None):
    """Send lies to each of the sites; return what of ASSERTIONS each upstream got, and all of its headers."""
    found = []
    for port, path in sites:
        assert nginx.status(getattr(nginx, port), forged(path, *lines), client) == 200
        headers = seen.pop()[1]
        found.append((asserted(headers), headers))
    assert not seen
    return found


@pytest.mark.parametrize("underscores", ["off", "on"])
def test_upstreams_learn_who_called_and_clients_cannot_lie_about_it(tmp_path, underscores):
    """Nginx drops headers with an underscore by itself, unless somebody has told it not to."""
    changes = [("server_tokens off;", f"server_tokens off; underscores_in_headers {underscores};")]
    with recorder() as (port, seen), nginx_front(tmp_path, port, port, changes) as nginx:
        for named in ("keep-alive, x-a", "close", f"close, {', '.join(ASSERTIONS)}"):
            for found, headers in sent_on(nginx, seen, (*TO_VNCTOKEN, *TO_ONED), f"Connection: {named}"):
                assert found == {"X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Proto": ["https"]}
                assert not [name for name in ASSERTIONS if name in headers and name not in found], "not even empty"
                assert headers["Content-Length"] == "4"
                assert "Connection" not in headers


def test_a_client_certificate_is_passed_on_to_vnctoken_alone_if_it_is_of_the_right_authority(tmp_path):
    ours, others = Authority(tmp_path), Authority(tmp_path, "others")
    changes = [
        ("#ssl_client_certificate /etc/ssl/certs/clients.example.org.pem", f"ssl_client_certificate {ours.file}"),
        # Anybody's is let through, so that it is the file alone that tells them apart.
        ("#ssl_verify_client optional", "ssl_verify_client optional_no_ca"),
    ]
    right, wrong, expired = ours.issue(), others.issue(), ours.issue(expires=-DAY)
    with recorder() as (port, seen), nginx_front(tmp_path, port, port, changes) as nginx:
        for found, _ in sent_on(nginx, seen, TO_VNCTOKEN, client=right.file):
            (value,) = found.pop("X-SSL-Client-Cert")
            assert certificate_in(value) == right.der
            assert {*found} == {"X-Forwarded-For", "X-Forwarded-Proto"}
        for sites, client in ((TO_ONED, right.file), (TO_VNCTOKEN, wrong.file), (TO_VNCTOKEN, None)):
            for found, _ in sent_on(nginx, seen, sites, client=client):
                assert {*found} == {"X-Forwarded-For", "X-Forwarded-Proto"}
        for port_name, path in TO_VNCTOKEN:
            assert nginx.status(getattr(nginx, port_name), forged(path), expired.file) == 400


def test_a_name_that_nginx_has_checked_is_passed_on_by_taking_away_comment_signs(tmp_path):
    (tmp_path / "htpasswd").write_text("remy@EXAMPLE.ORG:{PLAIN}secret\n", encoding="utf-8")
    changes = [
        ("#auth_basic ", "auth_basic "),
        ("#auth_basic_user_file /etc/nginx/vnctoken.htpasswd", f"auth_basic_user_file {tmp_path}/htpasswd"),
        ("#proxy_set_header", "proxy_set_header"),
    ]
    right, wrong = (base64.b64encode(f"remy@EXAMPLE.ORG:{word}".encode()).decode() for word in ("secret", "wrong"))
    with recorder() as (port, seen), nginx_front(tmp_path, port, port, changes) as nginx:
        for found, headers in sent_on(nginx, seen, TO_VNCTOKEN, f"Authorization: Basic {right}"):
            assert found.pop("X-Auth-Username") == ["remy@EXAMPLE.ORG"]
            assert {*found} == {"X-Forwarded-For", "X-Forwarded-Proto"}
            assert "Authorization" not in headers
        for port_name, path in TO_VNCTOKEN:
            assert nginx.status(getattr(nginx, port_name), forged(path, f"Authorization: Basic {wrong}")) == 401
            assert nginx.status(getattr(nginx, port_name), forged(path)) == 401


def test_vnctoken_can_be_behind_its_unix_socket(tmp_path):
    with recorder(tmp_path / "proxy.sock") as (_, seen):
        changes = [
            ("        proxy_pass http://127.0.0.1:2;\n", ""),
            ("#proxy_pass http://unix:/run/vnctoken/proxy.sock;", f"proxy_pass http://unix:{tmp_path}/proxy.sock;"),
        ]
        with nginx_front(tmp_path, 2, 3, changes) as nginx:
            for port, path in TO_VNCTOKEN:
                assert nginx.status(getattr(nginx, port), forged(f"{path}/y?z=1")) == 200
                arrived, headers, _ = seen.pop()
                assert arrived == f"{path}/y?z=1"
                assert asserted(headers) == {"X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Proto": ["https"]}
