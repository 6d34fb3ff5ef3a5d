"""The `vnctoken-websockify` command: a real websockify, what it logs, how it ends, and its health check."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
import redis
from conftest import ROOT, START_SECONDS, Running, free_port, ipv6_loopback, program, running
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto import jwk, jwt
from test_resolver import resolver
from twisted.internet.defer import Deferred
from webservers import until
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

from vnctoken.proxy import main, record_without_tokens, trouble, without_tokens
from vnctoken.tokens import Grant
from vnctoken.tokens.jwt import JwtStore

GOOD = "3f786850e387550fdab836ed7e6dc881"
UNKNOWN = "89e6c98d92887913cadf06b2adb97f26"


def fingerprint(token):
    """Return what docs/operations.md says a token is called: printf %s TOKEN | sha256sum | cut -c1-8."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]


@dataclass
class Proxy:
    """A running websockify."""

    port: int
    process: Running

    def connection(self, host="127.0.0.1"):
        return socket.create_connection((host, self.port), timeout=START_SECONDS)

    def console(self, token):
        return WebSocket.connect(self.connection(), f"/websockify?token={token}")

    def say(self, request):
        """Send what may not be a request at all, and return what is answered until the connection is closed."""
        with self.connection() as connection:
            connection.sendall(request.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    answer += more
            return answer.decode()


@contextlib.contextmanager
def websockify(folder, *options, command=("-m", "vnctoken.proxy"), host="127.0.0.1:", plugin="TokenFile", **popen):
    """Run the command, or another that runs websockify, for the time of a block."""
    port = free_port()
    words = (sys.executable, *command, "--token-plugin", plugin, "--token-source", folder, *options, f"{host}{port}")
    with running(*words, ready="proxying from", **popen) as process:
        yield Proxy(port, process)


OURS = ("-m", "vnctoken.proxy")
STOCK = ("-m", "websockify")


@pytest.fixture
def folder(tmp_path):
    """Return a token folder in which GOOD opens a screen."""
    tokens = tmp_path / "tokens"
    tokens.mkdir(mode=0o700)
    with screen() as port:
        (tokens / "one-7").write_text(f"{GOOD}: 127.0.0.1:{port}\n", encoding="utf-8")
        yield tokens


# What it is for


def test_a_token_opens_its_console_and_data_flows_both_ways(folder):
    with websockify(folder) as proxy, contextlib.closing(proxy.console(GOOD)) as console:
        assert console.receive_exactly(len(GREETING)) == GREETING
        console.send(b"a key pressed" * 10_000)
        assert console.receive_exactly(130_000) == b"a key pressed" * 10_000


def test_websockify_gets_its_options_as_they_are(folder):
    with websockify(folder, "--web", folder) as proxy:
        assert GOOD in proxy.say("GET /one-7 HTTP/1.0\r\n\r\n")


def test_it_runs_with_the_websockify_of_the_distribution(folder):
    program("/usr/bin/websockify")
    python = "/usr/bin/python3"
    words = ("--token-plugin", "TokenFile", "--token-source", folder, "127.0.0.1:")
    port = free_port()
    command = (python, "-m", "vnctoken.proxy", *words[:-1], f"{words[-1]}{port}")
    with running(*command, ready="proxying from", cwd=ROOT) as process:
        proxy = Proxy(port, process)
        with contextlib.closing(proxy.console(GOOD)) as console:
            assert console.receive_exactly(len(GREETING)) == GREETING
        process.wait_for(rf"Path: '/websockify\?token={fingerprint(GOOD)}'")
        assert GOOD not in process.output


# What it logs

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
VERSION = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n"


@dataclass
class Leak:
    """A request that has the stock websockify log a secret with --verbose, and the token that we log in its place."""

    line: str
    secret: str
    token: str | None
    headers: str = UPGRADE + VERSION
    quiet: bool = False
    """Whether the token's fingerprint is logged without --verbose too."""


JWT = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..M2FiYzEyMzQ1Njc4.c2VjcmV0LXNlY3JldC1zZWNyZXQ.dGFnLXRhZy10YWctdGFnLXRh"
LEAKS = {
    "a good token": Leak(f"GET /websockify?token={GOOD} HTTP/1.1", GOOD, GOOD, quiet=True),
    "an unknown token": Leak(f"GET /websockify?token={UNKNOWN} HTTP/1.1", UNKNOWN, UNKNOWN, quiet=True),
    "a token of another make": Leak(
        "GET /?token=eyJhbGci.eyJo-o.A_c HTTP/1.1", *["eyJhbGci.eyJo-o.A_c"] * 2, quiet=True
    ),
    "an encoded token": Leak("GET /?%74oken=%6Cet%2Dme%27in HTTP/1.1", "let-me'in", "let-me'in", quiet=True),
    "an encoded good token": Leak(f"GET /?%74oken=%33{GOOD[1:]} HTTP/1.1", GOOD[1:], GOOD, quiet=True),
    "one among others": Leak("GET /?user=a&token=let+me+in&token=two#3 HTTP/1.1", "let me in", "let me in", quiet=True),
    "a forged log line": Leak(
        "GET /?token=a%27%20not%20found%0Aforged HTTP/1.1", "forged", "a' not found\nforged", quiet=True
    ),
    "no websocket version": Leak("GET /?token=let-me-in HTTP/1.1", "let-me-in", "let-me-in", UPGRADE, quiet=True),
    "no websocket": Leak(f"GET /websockify?token={UNKNOWN} HTTP/1.1", UNKNOWN, UNKNOWN, ""),
    "HEAD": Leak("HEAD /websockify?token=let-me-in HTTP/1.1", "let-me-in", "let-me-in", ""),
    "POST": Leak("POST /websockify?token=let-me-in HTTP/1.1", "let-me-in", "let-me-in", ""),
    "an encoded question mark": Leak("GET /websockify%3Ftoken%3Dlet-me-in HTTP/1.1", "let-me-in", None, ""),
    "a path encoded twice": Leak("GET /websockify%253ftoken%253dlet-me-in HTTP/1.1", "let-me-in", None, ""),
    "a token in the path": Leak(f"GET /websockify/{UNKNOWN} HTTP/1.1", UNKNOWN, UNKNOWN, ""),
    "a JWT in the path": Leak(f"GET /websockify/{JWT} HTTP/1.1", JWT[-20:], JWT, ""),
    "a token as the verb": Leak(f"{UNKNOWN} / HTTP/1.1", UNKNOWN, UNKNOWN),
    "spaces": Leak("GET /websockify?token=let me in HTTP/1.1", "me in", "let me in"),
    "a space, no version": Leak("GET /websockify?token=let me_in", "me_in", "let me_in"),
    "no question mark": Leak("GET /websockify token=let-me-in", "let-me-in", "let-me-in"),
    "a wrong version": Leak("GET /websockify?token=let-me-in HTTP/x", "let-me-in", None),
    "one word": Leak("/websockify?token=let-me-in", "let-me-in", "let-me-in"),
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Return a function that tells what a command logs for each of LEAKS."""
    known = {}

    def run(command, *options):
        if (command, options) not in known:
            tokens = tmp_path_factory.mktemp("tokens")
            with screen() as target:
                (tokens / "one-7").write_text(f"{GOOD}: 127.0.0.1:{target}\n", encoding="utf-8")
                with websockify(tokens, *options, command=command) as proxy:
                    known[command, options] = {name: lines_of(proxy, leak) for name, leak in LEAKS.items()}
        return known[command, options]

    return run


def lines_of(proxy, leak):
    """Return what is logged of a request: all lines before that of another one, which is logged for certain."""
    begin = len(proxy.process.lines)
    proxy.say(f"{leak.line}\r\nHost: localhost\r\n{leak.headers}\r\n")
    marker = f"marker-{begin}"
    proxy.say(f"GET /?token={marker} HTTP/1.1\r\n{UPGRADE}\r\n")
    proxy.process.wait_for(rf"oken '({marker}|{fingerprint(marker)})' not found")
    return "\n".join(line for line in proxy.process.lines[begin:] if marker not in line)


@pytest.mark.parametrize("options", [(), ("--verbose",)])
@pytest.mark.parametrize("name", LEAKS)
def test_no_token_is_logged_but_its_fingerprint(logged, name, options):
    leak, text = LEAKS[name], logged(OURS, *options)[name]
    assert leak.secret not in text
    as_sent = leak.line.partition("?")[2].partition(" ")[0]
    assert not as_sent or as_sent not in text
    if leak.token and (leak.quiet or options):
        assert fingerprint(leak.token) in text


@pytest.mark.parametrize("name", LEAKS)
def test_the_stock_websockify_does_log_it(logged, name):
    """Were this to change, the test above would prove nothing."""
    assert LEAKS[name].secret in logged(STOCK, "--verbose")[name]


def test_a_log_file_gets_no_token_either(folder, tmp_path):
    log = tmp_path / "websockify.log"
    with websockify(folder, "--log-file", log) as proxy:
        proxy.console(GOOD).close()
        until(lambda: f"Path: '/websockify?token={fingerprint(GOOD)}'" in log.read_text())
    assert GOOD not in log.read_text()


def test_syslog_gets_no_token_either(folder):
    with socket.socket(type=socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(START_SECONDS)
        with websockify(folder, "--syslog", f"127.0.0.1:{syslog.getsockname()[1]}") as proxy:
            proxy.console(GOOD).close()
            while b"Path: " not in (message := syslog.recv(65536)):
                assert GOOD.encode() not in message
    assert f"Path: '/websockify?token={fingerprint(GOOD)}'".encode() in message


@contextlib.contextmanager
def json_token_api(folder, port):
    with resolver(folder / "tokens", {"port": port}) as answering:
        yield answering.source, answering.tokens[0], answering.process.stop


@contextlib.contextmanager
def token_redis(folder, port):
    token, redis_port = "A-token_of-ours", free_port()
    server = (program("redis-server"), "--port", redis_port, "--bind", "127.0.0.1", "--save", "", "--dir", folder)
    with running(*server, ready="Ready to accept connections") as process:
        with redis.Redis(port=redis_port) as client:
            client.set(token, f"127.0.0.1:{port}")
        yield f"127.0.0.1:{redis_port}", token, process.stop


@contextlib.contextmanager
def jwt_token_api(folder, port):
    key = folder / "jwt.key"
    key.write_text(secrets.token_urlsafe(32), encoding="utf-8")
    key.chmod(0o600)
    store = JwtStore([str(key)], time.time)
    issued = Deferred.fromCoroutine(store.issue(Grant(7, "127.0.0.1", port, time.time(), 600)))
    yield key, issued.result, key.unlink


PLUGINS = {"JSONTokenApi": json_token_api, "TokenRedis": token_redis, "JWTTokenApi": jwt_token_api}


@contextlib.contextmanager
def asked(plugin, folder, *options, command=OURS):
    """Ask for consoles through a plugin, by a good token and wrong ones; and by the good one when who knows it is gone.

    Yield the proxy and what it was asked for, decoded.
    """
    with screen() as port, PLUGINS[plugin](folder, port) as (source, token, stop):
        sent = (UNKNOWN, token[:-1] + "~", "let-me-in", "a%20b%27c", "%22x%22%3Fy", "eyJhbGci.eyJo-o.A_c")
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with websockify(source, *options, command=command, plugin=plugin, env=env) as proxy:
            if command == OURS:
                with contextlib.closing(proxy.console(token)) as console:
                    assert console.receive_exactly(len(GREETING)) == GREETING
            for wrong in sent:
                with pytest.raises(HandshakeRefusedError):
                    proxy.console(wrong)
            stop()
            with pytest.raises(HandshakeRefusedError):
                proxy.console(token)
            yield proxy, [token, *map(unquote, sent)]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_no_plugin_logs_a_token_even_when_what_it_asks_is_down(plugin, tmp_path):
    with asked(plugin, tmp_path, "--verbose") as (proxy, tokens):
        for token in tokens:
            proxy.process.wait_for(rf"\b{fingerprint(token)}\b")
    for token in tokens:
        assert token not in proxy.process.output
        assert quote(token) not in proxy.process.output


def test_with_an_rsa_key_its_public_half_makes_no_token_that_opens_anything(tmp_path):
    """Encrypted tokens are let in for symmetric keys alone (CVE-2022-3102)."""
    key = jwk.JWK.generate(kty="RSA", size=2048)
    (tmp_path / "key.pem").write_bytes(key.export_to_pem(private_key=True, password=None))
    with screen() as port:
        forged = json.dumps({"host": "127.0.0.1", "port": port})
        for _ in range(2):
            sealed = jwt.JWT(header={"alg": "RSA-OAEP", "enc": "A256GCM"}, claims=forged)
            sealed.make_encrypted_token(jwk.JWK.from_json(key.export_public()))
            forged = sealed.serialize()
        with websockify(tmp_path / "key.pem", plugin="JWTTokenApi") as proxy:
            with pytest.raises(HandshakeRefusedError):
                proxy.console(forged)
            proxy.process.wait_for("Expected JWS, got JWE")


def test_the_stock_websockify_does_log_the_tokens_that_it_cannot_ask_the_resolver_about(tmp_path):
    """Were this to change, the test above would prove less."""
    with asked("JSONTokenApi", tmp_path, command=STOCK) as (proxy, (token, *_)):
        proxy.process.wait_for(f"Max retries exceeded with url: /token/{token}")


REQUESTED = 'http://localhost:80 "GET /tokens?token={} HTTP/1.1" 200 15'


ASKED = 'http://127.0.0.1:2647 "GET /token/{} HTTP/1.1" 404 14'
UNANSWERED = "HTTPConnectionPool(host='127.0.0.1', port=2647): Max retries exceeded with url: /token/{} (Caused by x)"


@pytest.mark.parametrize(
    ("text", "logged_as"),
    [
        ("resolving token 'abc'", "resolving token 'ba7816bf'"),
        (REQUESTED.format("abc"), REQUESTED.format("ba7816bf")),
        (ASKED.format("abc"), ASKED.format("ba7816bf")),
        (ASKED.format("a?b=c"), ASKED.format(fingerprint("a?b=c"))),
        (UNANSWERED.format("a%20b'c"), UNANSWERED.format(fingerprint("a b'c"))),
        (f"[Errno 13] Permission denied: '/tokens/{GOOD}'", "[Errno 13] Permission denied: '/tokens/194ec39e'"),
        ("Path: '/websockify?token='", "Path: '/websockify?...'"),
        ("Path: '/websockify?vm=7'", "Path: '/websockify?...'"),
    ],
)
def test_a_token_in_any_other_line_is_replaced_too(text, logged_as):
    assert without_tokens(text) == logged_as


@pytest.mark.parametrize(
    "text",
    [
        "Path: '/websockify'",
        "connecting to: 2001:db8::1:5900",
        "code 405, message Method Not Allowed",
        "Openening socket failed: [Errno 98] Address already in use",
        "  - proxying from 127.0.0.1:29877 to targets generated by TokenFile",
        "Syntax error in /var/lib/one/sunstone_vnc_tokens/one-7 on line 1",
    ],
)
def test_a_line_without_a_token_stays_as_it_is(text):
    assert without_tokens(text) == text


@given(st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]), min_size=1), st.booleans())
def test_whatever_a_token_is_made_of_its_fingerprint_is_what_is_logged(token, encoded):
    sent = (
        quote(token, safe="")
        if encoded
        else "".join(c if c.isalnum() or c in "-._~" else quote(c, safe="") for c in token)
    )
    shown = f"/websockify?token={fingerprint(token)}"
    assert without_tokens(f"1.2.3.4: Path: '/websockify?token={sent}'") == f"1.2.3.4: Path: '{shown}'"
    assert without_tokens(f'"GET /websockify?token={sent} HTTP/1.1" 101 -') == f'"GET {shown} HTTP/1.1" 101 -'
    assert without_tokens(f"1.2.3.4: Token '{token}' not found") == f"1.2.3.4: Token '{fingerprint(token)}' not found"


@pytest.mark.parametrize(
    "piece",
    [
        "'",
        '" 101 -',
        "?",
        "%25",
        "%3f",
        "token=",
        "token '",
        "code 400, message ",
        "(",
        "a",
        "&a=1",
        "://",
        "/token/",
        "GET ",
    ],
)
def test_no_request_holds_the_log_up(piece):
    long = piece * (65536 // len(piece))
    began = time.process_time()
    for text in (
        f"1.2.3.4: Path: '/?{long}.'",
        f'"GET /?{long}. HTTP/1.1" 101 -',
        f"code 400, message Bad ({long}.)",
        long,
    ):
        without_tokens(text)
    assert time.process_time() - began < 2


def test_values_and_tracebacks_lose_their_tokens_too():
    try:
        try:
            raise KeyError(f"/websockify?token={GOOD}")
        except KeyError:
            raise ValueError(f"Token '{UNKNOWN}' not found") from None
    except ValueError:
        record = record_without_tokens("any", logging.DEBUG, __file__, 1, "of %s", (f"?token={GOOD}",), sys.exc_info())
    text = logging.Formatter().format(record)
    assert text.startswith(f"of ?token={fingerprint(GOOD)}\nTraceback (most recent call last):\n")
    assert text.endswith(f"ValueError: Token '{fingerprint(UNKNOWN)}' not found")
    assert GOOD not in text
    assert UNKNOWN not in text


# How it ends


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("everyone", [False, True], ids=["the listener alone", "the whole group"])
def test_told_to_end_it_ends_its_consoles_and_says_no_more_than_that(folder, how, everyone):
    """Every process of the unit is told by systemd, every one in the foreground by a terminal."""
    with websockify(folder, start_new_session=True) as proxy, contextlib.closing(proxy.console(GOOD)) as console:
        assert console.receive_exactly(len(GREETING)) == GREETING
        pid = proxy.process.process.pid
        (child,) = (int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        (os.killpg if everyone else os.kill)(pid, how)
        assert proxy.process.process.wait(START_SECONDS) == 0
        assert console.receive() is None
        until(lambda: not Path(f"/proc/{child}").exists())
    assert "Traceback" not in proxy.process.output


def ended(*words, **options):
    """Return the exit code and the output of the command, which ends by itself."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=START_SECONDS,
        **options,
    )
    return done.returncode, done.stdout


@pytest.fixture
def options(folder):
    return (*OURS, "--token-plugin", "TokenFile", "--token-source", folder)


def test_a_port_that_is_taken_is_exit_1(options):
    """The stock websockify ends with 0, so systemd would take it for done."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, output = ended(*options, f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "Address already in use" in output


def test_a_log_that_cannot_be_written_is_exit_1_and_says_so(options, tmp_path):
    code, output = ended(*options, "--log-file", tmp_path / "none" / "log", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert output == f"vnctoken-websockify: [Errno 2] No such file or directory: '{tmp_path}/none/log'\n"


def test_an_option_that_is_not_known_is_exit_2(options):
    code, output = ended(*options, "--hartbeat=30", f"127.0.0.1:{free_port()}")
    assert code == 2
    assert output.endswith("vnctoken-websockify: error: no such option: --hartbeat\n")


def test_help_is_websockifys():
    code, output = ended(*OURS, "--help")
    assert code == 0
    assert output.startswith("Usage: \n    vnctoken-websockify [options]")
    assert "--heartbeat=INTERVAL" in output


def test_without_websockify_it_says_what_to_install():
    # -I -S: no site-packages, no PYTHONPATH.
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from vnctoken.proxy import main; sys.exit(main(['29877']))"
    code, output = ended("-I", "-S", "-c", start)
    assert code == 1
    assert output == "vnctoken-websockify: websockify is not installed; pip install 'vnctoken[proxy]' brings it\n"


def test_what_else_is_missing_is_not_called_websockify(tmp_path):
    broken = tmp_path / "websockify"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "websocketproxy.py").write_text("import no_such_module\n", encoding="utf-8")
    code, output = ended(*OURS, "29877", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert code == 1
    assert output.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")


# The health check


def said(capsys, *arguments):
    """Return the exit code, what was printed, and what was said on standard error."""
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("host", ["127.0.0.1:", "[::1]:", "0.0.0.0:", "[::]:", ":", ""])
def test_a_websockify_that_serves_is_healthy_at_every_kind_of_address(folder, capsys, host):
    if "::" in host and not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    with websockify(folder, host=host) as proxy:
        at = f"{host}{proxy.port}"
        assert said(capsys, "--check", at) == (0, f"vnctoken-websockify: {at} serves connections\n", "")


def test_one_that_serves_files_is_healthy(folder, capsys):
    with websockify(folder, "--web", folder) as proxy:
        assert said(capsys, "--check", f"127.0.0.1:{proxy.port}")[0] == 0


UNPICKLABLE = """
import threading
from websockify.token_plugins import TokenFile

class Locked(TokenFile):
    def __init__(self, source):
        super().__init__(source)
        self.lock = threading.Lock()
"""
STARTING = """
import multiprocessing, sys

if __name__ == "__main__":
    multiprocessing.set_start_method({how!r})
    from websockify.websocketproxy import websockify_init
    websockify_init()
"""


@pytest.fixture
def plugins(tmp_path):
    (tmp_path / "plugins.py").write_text(UNPICKLABLE, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


@pytest.mark.parametrize("how", ["forkserver", "spawn"])
def test_one_that_accepts_and_serves_nobody_is_not_healthy(folder, tmp_path, plugins, capsys, how):
    """What cannot be pickled breaks every connection where Python does not fork, as 3.14 does not."""
    (tmp_path / "start.py").write_text(STARTING.format(how=how), encoding="utf-8")
    command = (tmp_path / "start.py",)
    with websockify(folder, command=command, plugin="plugins.Locked", env=plugins) as proxy:
        at = f"127.0.0.1:{proxy.port}"
        for _ in range(2):
            code, output, errors = said(capsys, "--check", at)
            assert (code, output) == (1, "")
            assert errors.startswith(f"vnctoken-websockify: {at}: connections are accepted and closed without a byte.")
            assert "novnc/websockify#643" in errors
        assert proxy.process.process.poll() is None, "for systemd it is active"


def test_the_command_serves_where_that_one_does_not(folder, plugins, capsys):
    with websockify(folder, plugin="plugins.Locked", env=plugins) as proxy:
        assert said(capsys, "--check", f"127.0.0.1:{proxy.port}")[0] == 0
        with contextlib.closing(proxy.console(GOOD)) as console:
            assert console.receive_exactly(len(GREETING)) == GREETING


def test_the_command_forks_whatever_the_default_is(folder, plugins):
    """So a connection's process has the log without tokens, and starts in milliseconds."""
    start = (
        "import multiprocessing, sys; multiprocessing.set_start_method('forkserver')\n"
        "from vnctoken.proxy import main; sys.exit(main())"
    )
    with websockify(folder, command=("-c", start), plugin="plugins.Locked", env=plugins) as proxy:
        with contextlib.closing(proxy.console(GOOD)) as console:
            assert console.receive_exactly(len(GREETING)) == GREETING
        proxy.process.wait_for(rf"token={fingerprint(GOOD)}")


def test_one_that_begins_to_listen_during_the_check_is_healthy(folder):
    port, found = free_port(), []
    checking = threading.Thread(target=lambda: found.append(trouble("127.0.0.1", port, START_SECONDS)))
    checking.start()
    options = ("--token-plugin", "TokenFile", "--token-source", folder)
    with running(sys.executable, *OURS, *options, f"127.0.0.1:{port}", ready="proxying from"):
        checking.join()
    assert found == [None]


def test_nobody_there_is_trouble():
    assert trouble("127.0.0.1", free_port(), 0.2) == "nobody listens there, after 0.2 seconds; its log says why"


def test_no_answer_is_trouble():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = trouble("127.0.0.1", silent.getsockname()[1], 0.2)
    assert found == "connections are accepted, but there was no answer within 0.2 seconds"


def test_a_name_that_is_none_is_trouble():
    assert trouble("no-such-host.invalid", 29877, 5).startswith("no connection: ")


def test_another_program_at_that_port_is_trouble(capsys):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        other.RequestHandlerClass.log_message = lambda *_: None
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            code, _, errors = said(capsys, "--check", f"127.0.0.1:{other.server_port}")
        finally:
            other.shutdown()
            thread.join()
    assert code == 1
    assert errors.endswith(": another program listens there, not websockify\n")


@pytest.mark.parametrize("pause", [0, 0.01])
def test_a_server_that_never_ends_its_answer_does_not_hold_the_check_up(pause):
    stop = threading.Event()

    def go_on(listening):
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while not stop.wait(pause):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=go_on, args=(listening,))
        answering.start()
        try:
            assert trouble("127.0.0.1", listening.getsockname()[1], 0.3) is not None
        finally:
            stop.set()
            answering.join()


@pytest.mark.parametrize(
    "wrong", [(), ("29877x",), ("127.0.0.1",), ("127.0.0.1:0",), ("127.0.0.1:65536",), ("127.0.0.1:²",), ("a:1", "b:2")]
)
def test_what_is_no_address_is_exit_2_and_says_what_is_expected(capsys, wrong):
    code, output, errors = said(capsys, "--check", *wrong)
    assert (code, output) == (2, "")
    assert "ADDRESS:PORT is expected, such as 127.0.0.1:29877 or [::1]:29877" in errors
