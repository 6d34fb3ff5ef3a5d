"""The shipped nginx files, in a real nginx, in front of a running service and oned."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
import xmlrpc.client
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, START_SECONDS, free_port, ipv6_loopback, program, running, tokens_in, vnctoken_server
from webservers import (
    TOKEN_OF_VM_0,
    VERSION,
    make_certificate,
    recorder,
    replaced,
    tls_handshake,
    until,
    wait_for_port,
    write_nginx_main,
)

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Nginx:
    """An nginx that runs both shipped files, and where its things are."""

    folder: Path
    vnctoken_port: int = 0
    opennebula_port: int = 0

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

    def request(self, port, path, body=b"", headers=(), host="127.0.0.1"):
        """Return status and body of one https POST."""
        connection = http.client.HTTPSConnection(host, port, timeout=START_SECONDS, context=self.trust)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"Content-Type": "text/xml", **dict(headers)})
            answer = connection.getresponse()
            return answer.status, answer.read()


def write_configuration(nginx, vnctoken_upstream, oned_upstream, names=("vnctoken", "opennebula-rpc")):
    """Write a configuration around the shipped files, in which just ports and paths are others; return its path."""
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
        (folder / f"{name}.conf").write_text(replaced(text, shipped[name]), encoding="utf-8")
    return write_nginx_main(folder, names)


@contextlib.contextmanager
def nginx_front(folder, vnctoken_upstream, oned_upstream):
    """Run nginx with both shipped files for the time of a block."""
    binary = program("nginx")
    if not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    nginx = Nginx(folder, free_port(), free_port())
    make_certificate(folder)
    main = write_configuration(nginx, vnctoken_upstream, oned_upstream)
    with running(binary, "-p", folder, "-e", "stderr", "-c", main) as process:
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


def test_upstreams_learn_who_called_and_clients_cannot_lie_about_it(tmp_path):
    lies = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "http", "Connection": "keep-alive, x-a"}
    with recorder() as (upstream, seen), nginx_front(tmp_path, upstream, upstream) as nginx:
        for port, path in (
            (nginx.vnctoken_port, "/RPC2/x"),
            (nginx.opennebula_port, "/RPC2/x"),
            (nginx.opennebula_port, "/RPC2/vnctoken"),
        ):
            assert nginx.request(port, path, b"body", headers=lies)[0] == 200
    assert [path for path, _, _ in seen] == ["/RPC2/x", "/RPC2", "/RPC2/vnctoken"]
    for _, headers, length in seen:
        assert headers.get_all("X-Forwarded-For") == ["127.0.0.1"]
        assert headers.get_all("X-Forwarded-Proto") == ["https"]
        assert headers["Content-Length"] == str(length) == "4"
        assert "Connection" not in headers
