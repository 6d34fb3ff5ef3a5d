"""Four web servers, configured as nginx/console.conf and docs/reverse-proxies.md say, held to the same promises."""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
import socket
import time
import xmlrpc.client
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from authorities import DAY, Authority
from conftest import ROOT, START_SECONDS, Service, free_port, tokens_in, vnctoken_server
from cryptography.hazmat.primitives.asymmetric import rsa
from webservers import (
    CERTIFICATES,
    CLOSED,
    HOST,
    SERVERS,
    TOKEN_OF_VM_0,
    VERSION,
    Upstreams,
    asserted,
    certificate_in,
    forged,
    open_folder,
    recorder,
    set_to,
    tls_handshake,
    until,
    web_server,
)
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen, websockify

from vnctoken.auth import ASSERTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ("browsing",)

SESSION = "alice:secret"
XML = {"Content-Type": "text/xml"}

# What else could end a console, made a second long; the console's own hours stay.
ALL_ELSE_SHORT = {
    "nginx": (
        ("server_tokens off;", "server_tokens off; keepalive_timeout 1s; send_timeout 1s;"),
        ("client_header_timeout 10s", "client_header_timeout 1s"),
        ("client_body_timeout 30s", "client_body_timeout 1s"),
        ("proxy_connect_timeout 5s", "proxy_connect_timeout 1s"),
    ),
    "lighttpd": (
        (
            "server.modules +=",
            "server.max-read-idle = 1\nserver.max-write-idle = 1\nserver.max-keep-alive-idle = 1\nserver.modules +=",
        ),
        ('"connect-timeout" => 5', '"connect-timeout" => 1'),
    ),
    "apache": (
        ("ServerTokens Prod", "Timeout 1\nKeepAliveTimeout 1\nRequestReadTimeout header=1 body=1"),
        ("connectiontimeout=5", "connectiontimeout=1"),
    ),
    "caddy": (("read_header 10s", "read_header 1s"), ("read_body 30s", "read_body 1s\n\t\t\tidle 1s\n\t\t\twrite 1s")),
}
# The console's own hours, made two seconds.
CONSOLE_SHORT = {
    "nginx": (("proxy_send_timeout 12h", "proxy_send_timeout 2s"), ("proxy_read_timeout 12h", "proxy_read_timeout 2s")),
    "lighttpd": (("idle = 43200", "idle = 2"),),
    # Apache takes the longer of this and Timeout, 300 s in Debian.
    "apache": (("ServerTokens Prod", "Timeout 1"), ("timeout=43200", "timeout=2")),
}
# What switches on logins at the web server, by the names and passwords in a file, or by one name and hash.
LOGIN = "remy@EXAMPLE.ORG", "secret"
HASHED = "$2y$04$Z4xm./h3qY6tlDa.jKaGQOw3yZOHOLqAuY6n/uoNRv1Quq7AE.WRC"
LOGINS = {
    "nginx": (
        ("#auth_basic ", "auth_basic "),
        ("#auth_basic_user_file /etc/nginx/vnctoken.htpasswd", "auth_basic_user_file {}"),
        ('#proxy_set_header Authorization ""', 'proxy_set_header Authorization ""'),
        ("#proxy_set_header X-Auth-Username", "proxy_set_header X-Auth-Username"),
    ),
    "apache": (
        ("#AuthType", "AuthType"),
        ("#AuthName", "AuthName"),
        ("#AuthUserFile /etc/apache2/vnctoken.htpasswd", "AuthUserFile {}"),
        ("#Require", "Require"),
        ("#RequestHeader", "RequestHeader"),
    ),
    "caddy": (
        ("#basicauth {\n\t\t#\txenia HASH\n\t\t#}", "basicauth {{\nremy@EXAMPLE.ORG {}\n}}"),
        ('header_up -X-Auth-Username\n\t\t\t# For the door "remote"', '# For the door "remote"'),
        ("#header_up X-Auth-Username {", "header_up X-Auth-Username {{"),
        ("#header_up -Authorization", "header_up -Authorization"),
    ),
}
# What puts a Unix socket in place of the service's port, 2.
SOCKETS = {
    "nginx": (
        ("        proxy_pass http://127.0.0.1:2;\n", ""),
        ("#proxy_pass http://unix:/run/vnctoken/proxy.sock", "proxy_pass http://unix:{}"),
    ),
    "lighttpd": (('"host" => "127.0.0.1", "port" => 2,', '"host" => "{}",'),),
    "apache": (('"http://127.0.0.1:2"', '"unix:{}|http://localhost"'),),
    "caddy": (("reverse_proxy 127.0.0.1:2 {", "reverse_proxy unix/{} {{"),),
}
# How long an answer of the service may take, made a second.
SERVICE_SHORT = {
    "nginx": ("proxy_read_timeout 30s", "proxy_read_timeout 1s"),
    "lighttpd": ('"read-timeout" => 30', '"read-timeout" => 1'),
    "apache": (" timeout=30 ", " timeout=1 "),
    "caddy": ("response_header_timeout 30s", "response_header_timeout 1s"),
}
# How a console is refused if the proxy does not know the token, and if it is not running.
UNKNOWN = {"nginx": 502, "lighttpd": 500, "apache": 502, "caddy": 502}
NOT_RUNNING = {"nginx": 502, "lighttpd": 503, "apache": 503, "caddy": 502}
# What the log says about a program behind that is down, where the address of the request holds no secret.
DOWN = {
    "nginx": r'connect\(\) failed .* "POST /RPC2',
    "lighttpd": "Connection refused",
    "apache": "failed to make connection to backend: 127.0.0.1",
    "caddy": 'connect: connection refused".*"uri":"/RPC2',
}


@dataclass
class Behind:
    """What runs behind the web servers, and the screen of every VM."""

    service: Service
    upstreams: Upstreams
    screen_port: int

    def token(self, front):
        """Return the token of a console that a portal asked for at a web server."""
        answer = front.request("POST", "/RPC2/vnctoken", TOKEN_OF_VM_0, XML)
        ok, token, _ = xmlrpc.client.loads(answer.body)[0][0]
        assert ok, token
        # The sandbox's VM is on a host that does not exist; its screen is here.
        written = self.service.tokens / "one-0"
        assert tokens_in(written)[token] == "dummy-host-1:5900"
        written.write_text(f"{token}: 127.0.0.1:{self.screen_port}\n", encoding="utf-8")
        return token


@pytest.fixture(scope="module")
def behind(tmp_path_factory, cloud) -> Iterator[Behind]:
    oned_port = int(re.search(r":(\d+)/", cloud.url).group(1))
    with vnctoken_server(tmp_path_factory.mktemp("one"), cloud.url) as service, screen() as screen_port:
        service.tokens.mkdir(exist_ok=True)
        port = free_port()
        with websockify(service.tokens, port):
            yield Behind(service, Upstreams(oned_port, service.port, port), screen_port)


@pytest.fixture(scope="module", params=SERVERS)
def front(request, behind):
    with web_server(request.param, behind.upstreams) as running_server:
        yield running_server


@pytest.fixture(params=SERVERS)
def server(request):
    """Return the name of each web server in turn."""
    return request.param


def opened(front, path, *, secure=True):
    """Return a console, with the greeting of its screen read."""
    console = WebSocket.connect(front.open(secure=secure), path, {"Host": HOST})
    assert console.receive_exactly(len(GREETING)) == GREETING
    return contextlib.closing(console)


def refused(front, path, *, secure=True):
    """Return the status with which a console is refused."""
    with pytest.raises(HandshakeRefusedError) as caught:
        opened(front, path, secure=secure)
    return caught.value.status


def test_a_portal_gets_its_token_and_a_browser_its_console_from_one_address(front, behind):
    with opened(front, f"/websockify?token={behind.token(front)}") as console:
        for key in b"every key comes back at once and alone":
            console.send(bytes([key]))
            assert console.receive() == bytes([key])
        picture = secrets.token_bytes(200_000)
        console.send(picture)
        assert console.receive_exactly(len(picture)) == picture


def test_a_browser_opens_its_console_in_whatever_http_it_prefers(server, behind, chromium, certificate):
    """With lighttpd and Caddy that is HTTP/2, in which websockets are opened otherwise, or in HTTP/1.1 all the same."""
    with (
        web_server(server, behind.upstreams, certificate=certificate) as front,
        contextlib.closing(chromium.new_context()) as context,
    ):
        page = context.new_page()
        page.goto(f"https://{HOST}:{front.https_port}/console.html")
        greeting = page.evaluate(
            """(path) => new Promise((resolve, reject) => {
                const websocket = new WebSocket(`wss://${location.host}${path}`, "binary");
                websocket.onmessage = (event) => { resolve(event.data.text()); websocket.close(); };
                websocket.onclose = (event) => reject(new Error(`closed: ${event.code}`));
            })""",
            f"/websockify?token={behind.token(front)}",
        )
    assert greeting.encode() == GREETING


def test_the_screen_is_also_found_beside_novncs_own_page(front, behind):
    """The vnc.html of today's noVNC takes `path` relative to itself."""
    with opened(front, f"/novnc/websockify?token={behind.token(front)}"):
        pass


def test_a_console_may_be_idle_longer_than_anything_else(server, behind):
    with (
        web_server(server, behind.upstreams, ALL_ELSE_SHORT[server]) as front,
        opened(front, f"/websockify?token={behind.token(front)}") as console,
    ):
        console.settimeout(3)
        with pytest.raises(TimeoutError):
            console.receive()
        console.settimeout(START_SECONDS)
        console.send(b"still there")
        assert console.receive_exactly(11) == b"still there"


@pytest.mark.parametrize("server", CONSOLE_SHORT)
def test_an_idle_console_ends_after_the_hours_that_the_configuration_gives_it(server, behind):
    """Caddy has no such limit."""
    with (
        web_server(server, behind.upstreams, CONSOLE_SHORT[server]) as front,
        opened(front, f"/websockify?token={behind.token(front)}") as console,
    ):
        begun = time.monotonic()
        assert console.receive() is None
        assert 1.5 < time.monotonic() - begun < 10


def test_the_document_says_how_a_console_is_refused():
    document = (ROOT / "docs" / "reverse-proxies.md").read_text(encoding="utf-8")
    for name in SERVERS:
        (row,) = re.findall(rf"^\| {name} \|(.*)\|$", document, re.MULTILINE | re.IGNORECASE)
        assert [int(status) for status in re.findall(r"\b5\d\d\b", row)] == [UNKNOWN[name], NOT_RUNNING[name]]


def test_a_wrong_token_opens_nothing_and_ends_no_other_console(front, behind):
    with opened(front, f"/websockify?token={behind.token(front)}") as console:
        for path in ("/websockify?token=" + "0" * 32, "/websockify?token=", "/websockify"):
            assert refused(front, path) == UNKNOWN[front.name]
        console.send(b"x")
        assert console.receive() == b"x"


def test_what_is_no_websocket_is_told_so(front):
    assert front.request("GET", "/websockify?token=x").status == 405


def basic(password):
    """Return what HTTP Basic makes of a password of alice's."""
    return base64.b64encode(f"alice:{password}".encode()).decode()


def unlucky(front, token):
    """Ask in every way that goes wrong, with a token in it."""
    query = f"path=websockify%3Ftoken%3D{token}"
    assert refused(front, f"/websockify?token={token}") >= 400
    # As a "?" that was encoded once and twice too often arrives.
    assert refused(front, f"/websockify%3Ftoken={token}") >= 400
    assert refused(front, f"/novnc/websockify%253Ftoken%253D{token}") >= 400
    for path in (f"/websockify?token={token}", f"/websockify%3Ftoken={token}"):
        assert refused(front, path, secure=False) == 403
    referer = {"Referer": f"https://{HOST}/novnc/vnc.html?{query}"}
    for path in (f"/websockify?token={token}", f"/novnc/no.html?{query}", f"/no.html?{query}", f"/novnc/?{query}"):
        assert front.request("GET", path, headers=referer).status >= 400
    assert front.request("GET", f"/novnc/vnc.html?{query}", headers=referer, secure=False).status == 301
    assert front.request("POST", "/RPC2", VERSION, XML, secure=False).status == 403
    credentials = {"Authorization": f"Basic {basic(token)}", "X-ONEGATE-TOKEN": token, "X-SSL-Client-Cert": token}
    answer = front.request("POST", f"/RPC2/vnctoken?Signature={token}", VERSION, {**XML, **credentials})
    assert answer.status in {200, 502, 503}
    host = f"Host: {HOST}\r\nConnection: close\r\n".encode()
    address = f"/websockify?token={token}".encode()
    for request in (
        b"GET %b HTTP/1.1\r\n\r\n" % address,
        b"GET %b and more HTTP/1.1\r\n%b\r\n" % (address, host),
        b"GET %b HTTP/1.1\r\n%bno header\r\n\r\n" % (address, host),
        b"GET %b HTTP/1.1\r\n%bCookie: %b\r\n\r\n" % (address, host, b"x" * 100_000),
        b"GET /websockify%%zz%b HTTP/1.1\r\n%b\r\n" % (address, host),
        b"OTHER %b HTTP/1.1\r\n%b\r\n" % (address, host),
    ):
        assert front.status(request) in {0, *range(400, 600)}


def test_nothing_that_the_server_writes_holds_a_token_or_a_session(server, behind):
    wrong = secrets.token_hex(16)
    with web_server(server, behind.upstreams) as front:
        token = behind.token(front)
        with opened(front, f"/websockify?token={token}"):
            pass
        unlucky(front, wrong)
        front.process.stop()
        written = front.written
    assert re.search(r"POST\b.*/RPC2/vnctoken", written), written
    assert re.search(r"GET\b.*/websockify\b", written), written
    for secret in (token, wrong, basic(wrong), *SESSION.split(":")):
        assert secret not in written


def test_nor_does_it_while_all_is_down_behind_it_which_it_says(server):
    token = secrets.token_hex(16)
    with web_server(server, Upstreams(free_port(), free_port(), free_port())) as front:
        unlucky(front, token)
        for path in ("/RPC2", "/RPC2/vnctoken"):
            assert front.request("POST", path, VERSION, XML).status in {502, 503}
        front.process.stop()
        written = front.written
    assert re.search(DOWN[server], written), written
    for secret in (token, basic(token), *SESSION.split(":")):
        assert secret not in written


def test_what_was_down_is_used_again_as_soon_as_it_is_up(server, behind):
    port = free_port()
    with web_server(server, Upstreams(behind.upstreams.oned, behind.upstreams.vnctoken, port)) as front:
        path = f"/websockify?token={behind.token(front)}"
        assert refused(front, path) == NOT_RUNNING[server]

        def opens():
            with contextlib.suppress(HandshakeRefusedError), opened(front, path):
                return True
            return False

        with websockify(behind.service.tokens, port):
            until(opens, seconds=10)


def test_a_service_that_hangs_is_given_up_on(server):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with web_server(server, Upstreams(port, port, port), [SERVICE_SHORT[server]]) as front:
            begun = time.monotonic()
            assert front.request("POST", "/RPC2/vnctoken", TOKEN_OF_VM_0, XML).status in {502, 503, 504}
            assert time.monotonic() - begun < 10


@pytest.mark.parametrize("path", ["/console.html", "/novnc/vnc.html?autoconnect=1&path=a%3Fb", "/"])
def test_plain_http_leads_to_https(front, path):
    answer = front.request("GET", path, secure=False)
    assert (answer.status, answer.headers["location"]) == (301, f"https://{HOST}{path}")


@pytest.mark.parametrize("path", ["/RPC2", "/RPC2/", "/RPC2/vnctoken", "/RPC2?x=y", "/websockify", "/novnc/websockify"])
def test_plain_http_takes_no_passwords_and_no_tokens_and_leads_nowhere(front, path):
    answer = front.request("POST", path, TOKEN_OF_VM_0, XML, secure=False)
    assert answer.status == 403
    assert "location" not in answer.headers


@pytest.mark.parametrize("path", ["/RPC2", "/RPC2/", "/RPC2?who=cares", "/RPC2/what/ever"])
def test_oned_answers_at_rpc2_whatever_follows(front, path):
    answer = front.request("POST", path, VERSION, XML)
    assert answer.status == 200
    assert xmlrpc.client.loads(answer.body)[0][0][:2] == [True, "6.10.0"]


@pytest.mark.parametrize("path", ["/RPC2/vnctoken", "/RPC2/vnctoken/", "/RPC2/vnctoken?who=cares"])
def test_the_service_answers_below_it(front, path):
    answer = front.request("POST", path, VERSION, XML)
    assert answer.status == 200
    assert xmlrpc.client.loads(answer.body)[0][0][2] == 0x1000, "the service does not know oned's methods"


def test_oned_gets_a_length_even_from_a_client_that_sends_chunks(front):
    """All but Caddy wait for the whole body, as the document says."""
    chunks = iter([VERSION[:50].encode(), VERSION[50:].encode()])
    chunked = {**XML, "Transfer-Encoding": "chunked"}
    answer = front.request("POST", "/RPC2", chunks, chunked)
    assert answer.status == (411 if front.name == "caddy" else 200)


def test_bodies_are_bounded(server):
    """64 KiB for the service; 10 MiB for oned, which is sent templates with scripts in them."""
    limits = {"/RPC2/vnctoken": 64 * 1024, "/RPC2": 10 * 1024 * 1024}
    with recorder() as (port, seen), web_server(server, Upstreams(port, port, port)) as front:
        for path, limit in limits.items():
            assert front.request("POST", path, b" " * limit).status == 200
            for size in (limit + 1, 2 * limit):
                # Some servers close before they have read what they will not take.
                with contextlib.suppress(*CLOSED):
                    assert front.request("POST", path, b" " * size).status in {413, 502}
    assert {(path, length) for path, _, length in seen if length in limits.values()} == set(limits.items())
    assert all(length <= limits[path] for path, _, length in seen)


# A header that is named there is for the next hop alone, so that some servers take it away, be it their own.
CONNECTIONS = ("close", *ASSERTIONS, f"close, x-a, {', '.join(ASSERTIONS)}")


def test_programs_behind_learn_who_called_and_clients_cannot_lie_about_it(server):
    """Whatever says who a client is and where he is, is written by the web server, or by nobody."""
    with recorder() as (port, seen), web_server(server, Upstreams(port, port, port)) as front:
        for path in ("/RPC2/x", "/RPC2/vnctoken"):
            for named in CONNECTIONS:
                assert front.status(forged(path, f"Connection: {named}")) == 200
    assert {path for path, _, _ in seen} == {"/RPC2", "/RPC2/vnctoken"}
    for _, headers, _ in seen:
        assert asserted(headers) == {"X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Proto": ["https"]}
        assert headers.get_all("Host") == [HOST]
        assert headers["Content-Length"] == "4"
        assert "x-a" not in headers.get("Connection", "")


@pytest.mark.parametrize("server", CERTIFICATES)
def test_a_client_certificate_is_passed_on_if_it_is_of_the_right_authority_and_valid(server, tmp_path):
    ours, others = Authority(tmp_path), Authority(tmp_path, "others")
    names = [f"host-{number}.department.example.org" for number in range(100)]
    large = ours.issue(key=rsa.generate_private_key(65537, 4096), names=names)
    bad = [others.issue(), ours.issue(expires=-DAY)]
    changes = set_to(CERTIFICATES[server], ours.file)
    with recorder() as (port, seen), web_server(server, Upstreams(port, port, port), changes) as front:
        for certificate in (ours.issue(), large):
            assert front.status(forged("/RPC2/vnctoken"), client=certificate.file) == 200
            (value,) = asserted(seen.pop()[1])["X-SSL-Client-Cert"]
            assert certificate_in(value) == certificate.der
            assert front.status(forged("/RPC2"), client=certificate.file) == 200
            assert "X-SSL-Client-Cert" not in asserted(seen.pop()[1]), "oned has no use for it"
        for certificate in bad:
            # Without an answer, or with one that says why.
            assert front.status(forged("/RPC2/vnctoken"), client=certificate.file) in {0, 400}
        assert not seen
        assert front.status(forged("/RPC2/vnctoken")) == 200
        assert {*asserted(seen.pop()[1])} == {"X-Forwarded-For", "X-Forwarded-Proto"}


@pytest.mark.parametrize("server", LOGINS)
def test_a_name_that_the_web_server_has_checked_is_passed_on_and_its_password_is_not(server):
    name, password = LOGIN
    with contextlib.ExitStack() as stack:
        users = stack.enter_context(open_folder("users")) / "htpasswd"
        users.write_text(f"{name}:{HASHED}\n", encoding="utf-8")
        changes = set_to(LOGINS[server], HASHED if server == "caddy" else users)
        port, seen = stack.enter_context(recorder())
        front = stack.enter_context(web_server(server, Upstreams(port, port, port), changes))
        for wrong in ("X-Nothing: x", "Authorization: Basic " + base64.b64encode(f"{name}:wrong".encode()).decode()):
            assert front.status(forged("/RPC2/vnctoken", wrong)) == 401
        assert not seen
        right = base64.b64encode(f"{name}:{password}".encode()).decode()
        assert front.status(forged("/RPC2/vnctoken", f"Authorization: Basic {right}")) == 200
    ((_, headers, _),) = seen
    assert asserted(headers)["X-Auth-Username"] == [name]
    assert {*asserted(headers)} == {"X-Forwarded-For", "X-Forwarded-Proto", "X-Auth-Username"}
    assert "Authorization" not in headers


def test_the_service_can_be_behind_its_unix_socket(server):
    with open_folder("service") as folder, recorder(folder / "proxy.sock") as (_, seen):
        changes = set_to(SOCKETS[server], folder / "proxy.sock")
        with web_server(server, Upstreams(1, 2, 3), changes) as front:
            assert front.status(forged("/RPC2/vnctoken/x?y=z")) == 200
    ((path, headers, _),) = seen
    assert path == "/RPC2/vnctoken/x?y=z"
    assert asserted(headers) == {"X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Proto": ["https"]}
    assert headers.get_all("Host") == [HOST]


def test_credentials_of_the_clients_own_arrive_as_they_were_sent(server):
    own = {"Authorization": "Basic YWxpY2U6c2VjcmV0", "X-ONEGATE-TOKEN": "Zm9v+/==", "X-ONEGATE-VMID": "7"}
    own |= {"X-Amz-Date": "20300101T000000Z", "Host": f"{HOST}:8443"}
    path = "/RPC2/vnctoken?Signature=a%2Bb%2F%3D&Timestamp=2030-01-01T00%3A00%3A00Z"
    with recorder() as (port, seen), web_server(server, Upstreams(port, port, port)) as front:
        assert front.request("POST", path, b"body", own).status == 200
    ((arrived, headers, _),) = seen
    assert arrived == path
    assert {name: headers[name] for name in own} == own


def test_every_module_of_novnc_is_javascript_and_asked_for_again_after_an_update(front):
    modules = sorted((front.folder / "novnc" / "core").rglob("*.js"))
    assert front.folder / "novnc" / "core" / "rfb.js" in modules
    for module in modules:
        answer = front.request("GET", f"/{module.relative_to(front.folder)}")
        assert answer.status == 200
        assert answer.body == module.read_bytes()
        assert answer.headers["content-type"].split(";")[0] in {"text/javascript", "application/javascript"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    again = {"If-None-Match": answer.headers["etag"]}
    assert front.request("GET", f"/{module.relative_to(front.folder)}", headers=again).status == 304


@pytest.mark.parametrize("path", ["/console.html", "/novnc/core/rfb.js", "/no.html"])
def test_pages_keep_their_address_to_themselves_and_are_framed_by_their_own_site_alone(front, path):
    headers = front.request("GET", path).headers
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "frame-ancestors 'self'"
    assert not re.search(r"\d", headers["server"]), "the server's version"


def test_the_portals_own_page_is_at_the_root(front):
    answer = front.request("GET", "/console.html")
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert answer.body == (front.folder / "www" / "console.html").read_bytes()


@pytest.mark.parametrize("path", ["/", "/novnc/", "/novnc/core/", "/log/", "/novnc../log/", "/novnc/../../key.pem"])
def test_no_folder_is_listed_and_nothing_outside_is_served(front, path):
    assert front.request("GET", path).status in {400, 403, 404}


@pytest.mark.parametrize(("protocol", "spoken"), [("1", False), ("1_1", False), ("1_2", True), ("1_3", True)])
def test_tls_is_1_2_or_1_3(front, protocol, spoken):
    tried = tls_handshake(front.https_port, front.certificate, protocol)
    assert (tried.returncode == 0) is spoken
    assert ("alert protocol version" in tried.stderr) is not spoken
