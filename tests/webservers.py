"""Real web servers on loopback, with the configurations that come with the project around running upstreams."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT, START_SECONDS, Running, free_port, ipv6_loopback, program, running

from vnctoken.auth import ASSERTIONS
from vnctoken.sandbox.programs import find_novnc

HOST = "cloud.example.org"
"""The name in the shipped configurations; the tests reach it at 127.0.0.1."""

CLOSED = (ConnectionError, ssl.SSLError)
"""What is raised where a server closes before it has read all of a request."""

CALL = """<?xml version="1.0"?>
<methodCall><methodName>{method}</methodName><params><param><value><string>alice:secret</string></value></param>{more}
</params></methodCall>"""
VERSION = CALL.format(method="one.system.version", more="")
TOKEN_OF_VM_0 = CALL.format(method="one.vm.vnctokenonly", more="<param><value><int>0</int></value></param>")


# What switches on client certificates of the authority in a file.
AUTHORITY = "/etc/ssl/certs/clients.example.org.pem"
CERTIFICATES = {
    "nginx": (
        (f"#ssl_client_certificate {AUTHORITY}", "ssl_client_certificate {}"),
        ("#ssl_verify_client optional", "ssl_verify_client optional"),
    ),
    "apache": (
        (f"#SSLCACertificateFile {AUTHORITY}", "SSLCACertificateFile {}"),
        ("#SSLVerifyClient optional", "SSLVerifyClient optional"),
    ),
    "caddy": (
        (
            f"#client_auth {{\n\t\t#\tmode verify_if_given\n\t\t#\ttrusted_ca_cert_file {AUTHORITY}\n\t\t#}}",
            "client_auth {{\nmode verify_if_given\ntrusted_ca_cert_file {}\n}}",
        ),
    ),
}


def set_to(pairs, value):
    """Return replacements with a value put into each second string."""
    return [(old, new.format(value)) for old, new in pairs]


def replaced(text, pairs):
    """Return the text with each of the pairs' first strings, which must be in it, replaced by the second."""
    for old, new in pairs:
        assert old in text, f"the shipped file no longer says {old!r}"
        text = text.replace(old, new)
    return text


def until(condition, seconds=START_SECONDS):
    """Wait until the condition is true; fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def wait_for_port(port, process):
    """Wait until a process that says nothing accepts connections."""

    def accepts():
        assert process.process.poll() is None, process.output
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS).close()
            return True
        return False

    until(accepts)


def make_certificate(folder, *names):
    """Write a self-signed certificate for localhost and more names, and its key."""
    alternatives = ",".join(f"DNS:{name}" for name in ("localhost", *names))
    subprocess.run(
        (
            program("openssl"),
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            f"subjectAltName={alternatives},IP:127.0.0.1,IP:::1",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "certificate.pem",
        ),
        check=True,
        capture_output=True,
    )


def tls_handshake(port, certificate, protocol):
    """Shake hands as `openssl s_client -tls1_2` and its like do, and return what came of it."""
    return subprocess.run(
        (
            program("openssl"),
            "s_client",
            "-connect",
            f"127.0.0.1:{port}",
            f"-tls{protocol}",
            "-cipher",
            "ALL:@SECLEVEL=0",
            "-CAfile",
            certificate,
            "-verify_return_error",
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


class _Recorder(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers, len(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


FORGED = "6.6.6.6"
"""What a client says of himself in headers that are not his to write."""


def forged(path, *others, host=HOST):
    """Return the bytes of a call in which the client writes each of ASSERTIONS himself, in several spellings."""
    spellings = [spelt(name) for name in ASSERTIONS for spelt in (str, str.upper, str.lower)]
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", *others, *(f"{name}: {FORGED}" for name in spellings))
    return "\r\n".join((*lines, "Content-Length: 4", "", "body")).encode()


def asserted(headers):
    """Return which of ASSERTIONS a web server has sent on: the name and all values of each; empty ones say nothing."""
    found = {name: [value for value in headers.get_all(name, ()) if value] for name in ASSERTIONS}
    return {name: values for name, values in found.items() if values}


def certificate_in(value):
    """Return the DER of a certificate in a header: PEM in URL-encoding, or the base64 in it alone."""
    text = re.sub("-----(BEGIN|END) CERTIFICATE-----", "", unquote(value))
    return base64.b64decode("".join(text.split()), validate=True)


@contextlib.contextmanager
def recorder(path=None):
    """Run an upstream for a block's time; yield its port, and what it was sent: path, headers, length of the body.

    With a path it listens at a Unix socket there, and the port is 0.
    """
    if path is None:
        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Recorder)
    else:
        made = socketserver.ThreadingUnixStreamServer(str(path), _Recorder)
        # As Apache's user, who is not this one, has to get at it.
        path.chmod(0o777)
    with made as upstream:
        upstream.seen = []
        thread = threading.Thread(target=upstream.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield getattr(upstream, "server_port", 0), upstream.seen
        finally:
            upstream.shutdown()
            thread.join()


def write_nginx_main(folder, names):
    """Write an nginx.conf that includes files of the same folder, and return its path."""
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    includes = "".join(f"include {folder}/{name}.conf;\n" for name in names)
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr warn;\n"
        f"events {{}}\nhttp {{\n{places}{includes}}}\n",
        encoding="utf-8",
    )
    return main


def novnc():
    """Return the folder of a noVNC, npm's or else Debian's; skip the test, or fail with CI=true, if there is none."""
    if folder := find_novnc():
        return folder
    message = "noVNC is not installed: neither npm's @novnc/novnc in the virtual environment nor Debian's novnc"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
    return None


@dataclass
class Upstreams:
    """The ports of what stands behind a web server."""

    oned: int
    vnctoken: int
    websockify: int


@dataclass
class Answer:
    """What a web server answered; names of headers in lower case."""

    status: int
    headers: dict
    body: bytes


@dataclass
class Front:
    """A web server that runs a shipped configuration, and where its things are."""

    name: str
    folder: Path
    https_port: int
    http_port: int
    upstreams: Upstreams
    given: frozenset = frozenset()
    process: Running | None = None

    @property
    def certificate(self):
        return self.folder / "certificate.pem"

    @property
    def written(self):
        """Everything the server has written: what it printed, and every file but those that it was given."""
        files = {path for path in self.folder.rglob("*") if path.is_file()} - self.given
        return "\n".join([self.process.output, *(path.read_text("utf-8", "replace") for path in sorted(files))])

    def open(self, *, secure=True, address="127.0.0.1", client=None):
        """Return an open connection to it, over TLS if secure; `client` is a file with a certificate and its key."""
        port = self.https_port if secure else self.http_port
        plain = socket.create_connection((address, port), timeout=START_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not secure:
            return plain
        context = ssl.create_default_context(cafile=str(self.certificate))
        if client is not None:
            context.load_cert_chain(client)
        return context.wrap_socket(plain, server_hostname=HOST)

    def request(self, method, path, body=None, headers=(), **where):
        """Return the answer to one request; `where` is for open()."""
        headers = dict(headers)
        connection = http.client.HTTPConnection(HOST, timeout=START_SECONDS)
        connection.sock = self.open(**where)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    def status(self, request, **where):
        """Return the status of the answer to the bytes of a request, 0 if there is none; `where` is for open()."""
        with contextlib.suppress(*CLOSED), self.open(**where) as connection:
            connection.sendall(request)
            if line := connection.makefile("rb").readline():
                return int(line.split(b" ")[1])
        return 0

    def configuration(self, text, pairs):
        """Return a shipped configuration with this front's certificate, folders and ports."""
        return replaced(
            text,
            (
                (f"/etc/ssl/certs/{HOST}.pem", str(self.certificate)),
                (f"/etc/ssl/private/{HOST}.key", str(self.folder / "key.pem")),
                ("/usr/share/novnc", str(self.folder / "novnc")),
                ("/var/www/console", str(self.folder / "www")),
                *pairs,
            ),
        )


def documented(language):
    """Return the one configuration that docs/reverse-proxies.md has in a language."""
    document = (ROOT / "docs" / "reverse-proxies.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    return found


def nginx(front, changes):
    """Write nginx's files and return the command that runs it."""
    binary = program("nginx")
    shipped = (ROOT / "nginx" / "console.conf").read_text(encoding="utf-8")
    pairs = (
        ("listen 443 ssl;", f"listen 127.0.0.1:{front.https_port} ssl;"),
        ("listen [::]:443 ssl;", f"listen [::1]:{front.https_port} ssl;"),
        ("listen 80;", f"listen 127.0.0.1:{front.http_port};"),
        ("listen [::]:80;", f"listen [::1]:{front.http_port};"),
        ("/var/log/nginx/", f"{front.folder}/log/"),
        ("http://127.0.0.1:2633;", f"http://127.0.0.1:{front.upstreams.oned};"),
        ("http://127.0.0.1:2644;", f"http://127.0.0.1:{front.upstreams.vnctoken};"),
        ("http://127.0.0.1:29877;", f"http://127.0.0.1:{front.upstreams.websockify};"),
        *changes,
    )
    (front.folder / "console.conf").write_text(front.configuration(shipped, pairs), encoding="utf-8")
    main = write_nginx_main(front.folder, ["console"])
    return [binary, "-p", front.folder, "-e", "stderr", "-c", main], {}


def lighttpd(front, changes):
    """Write lighttpd's files, the main one after Debian's, and return the command that runs it."""
    binary = program("lighttpd")
    pairs = (
        ('"0.0.0.0:443"', f'"127.0.0.1:{front.https_port}"'),
        ('"[::]:443"', f'"[::1]:{front.https_port}"'),
        ("/var/log/lighttpd/", f"{front.folder}/log/"),
        ('"port" => 2633', f'"port" => {front.upstreams.oned}'),
        ('"port" => 2644', f'"port" => {front.upstreams.vnctoken}'),
        ('"port" => 29877', f'"port" => {front.upstreams.websockify}'),
        *changes,
    )
    (front.folder / "console.conf").write_text(front.configuration(documented("lighttpd"), pairs), encoding="utf-8")
    (front.folder / "lighttpd.conf").write_text(
        f"""server.modules = ( "mod_indexfile", "mod_access", "mod_alias", "mod_redirect" )
server.document-root = "{front.folder}/nothing"
server.upload-dirs = ( "{front.folder}" )
server.errorlog = "{front.folder}/log/error.log"
server.bind = "127.0.0.1"
server.port = {front.http_port}
index-file.names = ( "index.html" )
mimetype.assign = ( ".html" => "text/html", ".js" => "text/javascript", "" => "application/octet-stream" )
include "{front.folder}/console.conf"
server.modules += ( "mod_dirlisting", "mod_staticfile" )
""",
        encoding="utf-8",
    )
    return [binary, "-D", "-f", front.folder / "lighttpd.conf"], {}


def apache(front, changes):
    """Write Apache's files, with the modules that Debian and the document enable, and return the command to run it."""
    binary = program("apache2")
    document = (ROOT / "docs" / "reverse-proxies.md").read_text(encoding="utf-8")
    enabled = re.search(r"`a2enmod ([a-z_ ]+)`", document).group(1).split()
    debian = "mpm_event authz_core authz_host mime dir alias reqtimeout setenvif status deflate filter autoindex env"
    debian += " authn_core authn_file auth_basic authz_user"
    # a2enmod enables these with ssl.
    debian += " socache_shmcb"
    pairs = (
        ("<VirtualHost *:80>", f"<VirtualHost *:{front.http_port}>"),
        ("<VirtualHost *:443>", f"<VirtualHost *:{front.https_port}>"),
        ("http://127.0.0.1:2633", f"http://127.0.0.1:{front.upstreams.oned}"),
        ("http://127.0.0.1:2644", f"http://127.0.0.1:{front.upstreams.vnctoken}"),
        ("http://127.0.0.1:29877", f"http://127.0.0.1:{front.upstreams.websockify}"),
        *changes,
    )
    modules = "".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in (*debian.split(), *enabled)
    )
    (front.folder / "console.conf").write_text(front.configuration(documented("apache"), pairs), encoding="utf-8")
    (front.folder / "apache2.conf").write_text(
        f"""ServerName localhost
PidFile {front.folder}/apache.pid
Mutex file:{front.folder} default
Listen 127.0.0.1:{front.http_port}
Listen 127.0.0.1:{front.https_port}
{modules}
User www-data
Group www-data
TypesConfig /etc/mime.types
ErrorLog ${{APACHE_LOG_DIR}}/error.log
LogLevel warn
SSLSessionCache shmcb:{front.folder}/ssl_scache(512000)
<Directory />
    AllowOverride None
    Require all denied
</Directory>
Include {front.folder}/console.conf
""",
        encoding="utf-8",
    )
    environment = {**os.environ, "APACHE_LOG_DIR": str(front.folder / "log")}
    command = [binary, "-d", front.folder, "-f", front.folder / "apache2.conf", "-DFOREGROUND"]
    return command, {"env": environment}


def caddy(front, changes):
    """Write Caddy's file and return the command that runs it."""
    binary = program("caddy")
    ports = f"http_port {front.http_port}\n\thttps_port {front.https_port}\n\tdefault_bind 127.0.0.1\n\tadmin off\n"
    pairs = (
        ("\tservers {", f"\t{ports}\tservers {{"),
        ("127.0.0.1:2633", f"127.0.0.1:{front.upstreams.oned}"),
        ("127.0.0.1:2644", f"127.0.0.1:{front.upstreams.vnctoken}"),
        ("127.0.0.1:29877", f"127.0.0.1:{front.upstreams.websockify}"),
        *changes,
    )
    (front.folder / "Caddyfile").write_text(front.configuration(documented("caddyfile"), pairs), encoding="utf-8")
    home = {"HOME": str(front.folder), "XDG_DATA_HOME": str(front.folder), "XDG_CONFIG_HOME": str(front.folder)}
    command = [binary, "run", "--adapter", "caddyfile", "--config", front.folder / "Caddyfile"]
    return command, {"env": {**os.environ, **home}}


@contextlib.contextmanager
def open_folder(name):
    """Make a folder for a block's time. pytest's own are closed to the user that Apache runs as."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


SERVERS = {"nginx": nginx, "lighttpd": lighttpd, "apache": apache, "caddy": caddy}


@contextlib.contextmanager
def web_server(name, upstreams, changes=(), certificate=None):
    """Run a web server with its shipped configuration, in which just ports and paths are others, for a block's time.

    `changes` are further replacements, each of something the shipped configuration says. `certificate` is a folder with
    certificate.pem and key.pem, if not new ones are to be made.
    """
    if not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    with open_folder(name) as folder:
        front = Front(name, folder, free_port(), free_port(), upstreams)
        (folder / "log").mkdir()
        (folder / "www").mkdir()
        (folder / "www" / "console.html").write_text("<!doctype html><title>A console</title>\n", encoding="utf-8")
        shutil.copytree(novnc(), folder / "novnc")
        if certificate is None:
            make_certificate(folder, HOST)
        else:
            shutil.copy(certificate / "certificate.pem", folder)
            shutil.copy(certificate / "key.pem", folder)
        command, options = SERVERS[name](front, changes)
        front.given = frozenset(folder.rglob("*"))
        with running(*command, **options) as process:
            front.process = process
            for port in (front.https_port, front.http_port):
                wait_for_port(port, process)
            yield front
