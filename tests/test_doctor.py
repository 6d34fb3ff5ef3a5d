"""`vnctoken-server --doctor`: what it says of an installation of real parts, and of one in which some are broken."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, START_SECONDS, Running, free_port, ipv6_loopback, program, running, vnctoken_server
from test_proxy import OURS, STOCK, UNPICKLABLE, websockify
from test_proxy import STARTING as STARTING_WITHOUT_FORK
from twisted.internet import reactor
from webservers import Upstreams, until, web_server
from wsclient import screen

from vnctoken.checks import FAIL, OK, SKIP, WARN, check_extras, check_folder
from vnctoken.config import Config, load
from vnctoken.doctor import NAMES, Collaborators, Doctor
from vnctoken.parts import make_login, make_oned, make_store
from vnctoken.readers import token_options
from vnctoken.tokens import PROBE_VM_ID

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "serveradmin-secret-for-tests"
TOKEN_REDIS_HAS_NAMESPACES = tuple(map(int, version("websockify").split(".")[:2])) >= (0, 13)
COMMAND = (sys.executable, "-m", "vnctoken.server", "--doctor")


@dataclass
class Installation:
    """A cloud, a service and a proxy that work together, and the settings that say so."""

    one_location: Path
    settings: dict
    proxy: Running
    numbers: itertools.count = field(default_factory=itertools.count)

    @property
    def tokens(self):
        return self.one_location / "var" / "sunstone_vnc_tokens"

    @property
    def login(self):
        return self.one_location / "var" / ".one" / "sunstone_auth"

    def command(self, *options, **changed):
        """Return the command that examines this installation, and its environment; `changed` are other settings."""
        settings = self.settings | changed
        file = self.one_location / "etc" / f"{next(self.numbers)}.conf"
        lines = [f":{key}: {value}\n" for key, value in settings.items() if value is not None]
        file.write_text("".join(lines), encoding="utf-8")
        return [*COMMAND, *options, "--config", str(file)], {**os.environ, "ONE_LOCATION": str(self.one_location)}

    def doctor(self, *options, environment=(), **changed):
        """Return the exit code and what was printed, to standard output and to standard error."""
        command, usual = self.command(*options, **changed)
        done = subprocess.run(
            command,
            env={**usual, **dict(environment)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def examined(self, **changed):
        """Return what the same doctor finds within this process, which takes a tenth of the time."""
        command, environment = self.command(**changed)
        config, warnings = load(environment, command[-1])
        collaborators = Collaborators(
            oned=lambda: make_oned(config, reactor),
            store=lambda: make_store(config, reactor),
            login=lambda: make_login(config),
            now=time.time,
            user=os.geteuid(),
        )
        checks, outcome = {}, []

        def end(result):
            outcome.append(result)
            reactor.crash()

        def begin():
            doctor = Doctor(config, reactor, collaborators)
            doctor.examine(warnings, lambda check: checks.update({check.name: asdict(check)})).addBoth(end)

        reactor.callLater(0, begin)
        reactor.run(installSignalHandlers=False)
        assert outcome == [None]
        assert tuple(checks) == NAMES
        return checks


def failed(checks):
    """Return the names of what failed; each must say what to do."""
    assert all(check["advice"] for check in checks.values() if check["status"] in (FAIL, WARN))
    return [name for name, check in checks.items() if check["status"] == FAIL]


@contextlib.contextmanager
def installed(one, cloud, plugin="TokenFile", source=None, command=OURS, **settings):
    """Run a service and a proxy that reads its tokens, for the time of a block."""
    login = one / "var" / ".one" / "sunstone_auth"
    login.parent.mkdir(parents=True)
    login.write_text(f"serveradmin:{PASSWORD}\n", encoding="utf-8")
    settings = {"port": free_port(), **settings}
    lines = "".join(f":{key}: {value}\n" for key, value in settings.items())
    with (
        vnctoken_server(one, cloud.url, lines) as service,
        websockify(source or service.tokens, plugin=plugin, command=command) as proxy,
    ):
        settings |= {"one_xmlrpc": cloud.url, "proxy_address": f"127.0.0.1:{proxy.port}"}
        yield Installation(one, settings, proxy.process)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cloud):
    """Run an installation with all that there can be on one machine."""
    one = tmp_path_factory.mktemp("one")
    with installed(one, cloud, command=STOCK, resolver_listen=f"127.0.0.1:{free_port()}") as running_installation:
        yield running_installation


@pytest.fixture(scope="module")
def installation(whole):
    """Return it without the resolver, which takes up to a second to see a token of another process."""
    return replace(whole, settings=whole.settings | {"resolver_listen": None})


def files(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def live_lines(installation):
    """Return the lines in the token folder that open something."""
    texts = files(installation.tokens).values()
    return [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]


class Answering(socketserver.ThreadingTCPServer):
    """A server that says one thing to everybody, and then closes or waits."""

    daemon_threads = True

    def __init__(self, says, *, closes):
        self.says, self.closes, self.heard = says, closes, []
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            self.server.heard.append(self.request.recv(65536))
            self.request.sendall(self.server.says)
            if not self.server.closes:
                self.server.ended.wait(START_SECONDS * 2)


@contextlib.contextmanager
def answering(says=b"", *, closes=True):
    with Answering(says, closes=closes) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


# What takes a while runs while the other tests do


class Patient:
    """A doctor at work, and how long it took."""

    def __init__(self, installation, **changed):
        command, environment = installation.command("--json", **changed)
        self._began = time.monotonic()
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self._waiting = threading.Thread(target=self._wait)
        self._waiting.start()

    def _wait(self):
        self._output, _ = self._process.communicate()
        self.seconds = time.monotonic() - self._began

    def examined(self):
        """Return what was found, once it was."""
        self._waiting.join(START_SECONDS * 2)
        assert self._process.returncode == 1
        return {check["name"]: check for check in json.loads(self._output)}

    def stop(self):
        self._process.kill()
        self._waiting.join()


def token_folder(path):
    for folder in (path, path.with_name(f"{path.name}.new")):
        folder.mkdir(mode=0o700)
    return path


@pytest.fixture(scope="module", autouse=True)
def patients(whole, tmp_path_factory):
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(answering(closes=False)).server_address[1]
        folders = tmp_path_factory.mktemp("patients")
        settings = {
            "hanging": {
                "token_folder_name": token_folder(folders / "hanging"),
                **everywhere(silent),
                "public_url": f"https://127.0.0.1:{silent}/RPC2",
            },
            "another store": {"token_folder_name": token_folder(folders / "another")},
        }
        started = {}
        for name, changed in settings.items():
            started[name] = Patient(whole, **changed)
            stack.callback(started[name].stop)
        yield started


def everywhere(port):
    """Return the settings with which oned, proxy, resolver, service and web server all ought to be at one port."""
    at = f"127.0.0.1:{port}"
    url = f"http://{at}/RPC2"
    return {"one_xmlrpc": url, "proxy_address": at, "resolver_listen": at, "port": port, "public_url": url}


EVERYWHERE = ["oned", "proxy", "resolver", "server", "public_url"]


# All is well


def test_what_works_is_said_in_a_line_each_and_nothing_is_left_behind(whole):
    half_written = whole.tokens.with_name("sunstone_vnc_tokens.new") / "one-7.0123456789abcdef"
    half_written.write_text("another process is writing this", encoding="utf-8")
    code, output, errors = whole.doctor()
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == [*((OK, name) for name in NAMES[:-1]), (SKIP, "public_url")]
    assert f"{whole.settings['one_xmlrpc']} answers; it is OpenNebula 6.10.0" in lines[2]
    assert f"{whole.settings['proxy_address']}: a probe token opened a console through it" in lines[5]
    assert live_lines(whole) == []
    assert half_written.read_text(encoding="utf-8") == "another process is writing this"
    half_written.unlink()
    # The stock websockify logs tokens as they are.
    tokens = re.findall(r"token=([0-9a-f]{32})", whole.proxy.output)
    assert tokens
    for secret in (*tokens, PASSWORD):
        assert secret not in output


def test_json_is_a_list_of_the_checks(whole):
    code, output, errors = whole.doctor("--json")
    assert (code, errors) == (0, "")
    checks = json.loads(output)
    assert [check["name"] for check in checks] == [*NAMES]
    assert [check["status"] for check in checks] == [*[OK] * (len(NAMES) - 1), SKIP]
    assert {tuple(check) for check in checks} == {("name", "status", "detail", "advice")}


def test_a_failure_is_exit_1_and_its_line_says_what_to_do(installation):
    port = free_port()
    code, output, errors = installation.doctor(proxy_address=f"127.0.0.1:{port}")
    assert (code, errors) == (1, "")
    (line,) = [line for line in output.splitlines() if line.startswith("FAIL")]
    assert line == (
        f"FAIL proxy      127.0.0.1:{port}: nobody listens there"
        f" -> systemctl status vnctoken-websockify; :proxy_address: is 127.0.0.1:{port}"
    )


def test_a_doctor_that_is_interrupted_takes_its_token_back_and_fails(installation):
    with answering(closes=False) as proxy:
        command, environment = installation.command(proxy_address=f"127.0.0.1:{proxy.server_address[1]}")
        with running(*command, env=environment) as process:
            until(lambda: proxy.heard)
            (line,) = live_lines(installation)
            assert proxy.heard[0].startswith(f"GET /websockify?token={line.partition(':')[0]} ".encode())
            assert process.stop(signal.SIGINT) == 1
    assert live_lines(installation) == []
    assert process.lines[-1] == "vnctoken-server: interrupted, not everything was looked at"
    assert not any(line.split()[1] == "proxy" for line in process.lines)


# The configuration


def test_a_wrong_configuration_is_the_one_failure_and_the_rest_is_skipped(installation):
    code, output, errors = installation.doctor("--json", token_ttl="nope")
    assert (code, errors) == (1, "")
    checks = {check["name"]: check for check in json.loads(output)}
    assert tuple(checks) == NAMES
    assert failed(checks) == ["config"]
    assert ".conf: :token_ttl: is 'nope', but " in checks["config"]["detail"]
    assert {check["status"] for name, check in checks.items() if name != "config"} == {SKIP}


def test_warnings_are_no_failure(installation):
    checks = installation.examined(prot=1)
    assert failed(checks) == []
    assert checks["config"]["status"] == WARN
    assert "the nearest one is :port:" in checks["config"]["detail"]


@pytest.mark.parametrize(
    ("settings", "module", "extra", "status"),
    [
        ({"one_xmlrpc": "https://one.example.org/RPC2"}, "OpenSSL", "tls", FAIL),
        ({"public_url": "https://one.example.org/RPC2"}, "OpenSSL", "tls", WARN),
        ({"token_store": "redis"}, "txredisapi", "redis", FAIL),
        ({"token_store": "redis", "redis_tls": True}, "OpenSSL", "tls", FAIL),
        ({"token_store": "jwt"}, "jwcrypto", "jwt", FAIL),
        ({}, "cryptography", "login", WARN),
        ({"verify_on_connect": True, "resolver_listen": ("127.0.0.1", 2647)}, "cryptography", "login", FAIL),
        ({"auth": ("opennebula", "onegate")}, "cryptography", "login", FAIL),
        ({}, "zmq", "events", WARN),
        ({}, "prometheus_client", "metrics", WARN),
        ({"token_store": "jwt"}, "prometheus_client", "metrics", WARN),
    ],
)
def test_a_missing_package_is_named_and_a_failure_where_the_service_needs_it(
    monkeypatch, settings, module, extra, status
):
    config = Config(**settings)
    monkeypatch.setitem(sys.modules, module, None)  # so that importing it fails
    check = check_extras(config)
    assert check.status == status
    assert f"vnctoken[{extra}] is not installed" in check.detail
    assert check.advice == f"pip install 'vnctoken[{extra}]' into {sys.prefix}"


def test_a_package_that_is_not_needed_may_be_missing(monkeypatch):
    for module in ("OpenSSL", "txredisapi", "jwcrypto", "cryptography", "zmq", "prometheus_client"):
        monkeypatch.setitem(sys.modules, module, None)
    assert check_extras(Config(recheck_interval=0, subscriber_endpoint=None, monitor_listen=None)).status == OK


# oned and the login


def test_an_oned_that_is_down_fails_and_the_login_is_not_judged(installation):
    checks = installation.examined(one_xmlrpc=f"http://127.0.0.1:{free_port()}/RPC2")
    assert failed(checks) == ["oned"]
    assert "oned refuses connections" in checks["oned"]["detail"]
    assert "systemctl status opennebula" in checks["oned"]["advice"]
    assert checks["login"]["status"] == SKIP


@contextlib.contextmanager
def login_file(installation, text):
    before = installation.login.read_text(encoding="utf-8")
    installation.login.write_text(text, encoding="utf-8") if text is not None else installation.login.unlink()
    try:
        yield
    finally:
        installation.login.write_text(before, encoding="utf-8")


def test_a_login_that_oned_refuses_fails_while_oned_is_well(installation):
    with login_file(installation, "serveradmin:another-password\n"):
        checks = installation.examined()
    assert failed(checks) == ["login"]
    assert "oned refuses the server login" in checks["login"]["detail"]
    assert "oneuser passwd" in checks["login"]["advice"]
    assert checks["oned"]["status"] == OK
    assert "another-password" not in json.dumps(checks)


def test_no_login_is_a_warning(installation):
    with login_file(installation, None):
        checks = installation.examined()
    assert failed(checks) == []
    assert checks["login"]["status"] == WARN
    assert "tokens outlive their VM's console" in checks["login"]["detail"]
    assert checks["oned"]["status"] == OK


def test_a_door_that_needs_the_login_makes_its_absence_a_failure(installation):
    doors = {"auth": "[opennebula, ec2, onegate]"}
    assert failed(installation.examined(**doors)) == []
    with login_file(installation, None):
        checks = installation.examined(**doors)
    assert failed(checks) == ["login"]
    assert "but :auth: has ec2 and :auth: has onegate" in checks["login"]["detail"]


def test_a_login_file_without_a_login_fails(installation):
    with login_file(installation, "just-one-secret-word\n"):
        checks = installation.examined()
    assert failed(checks) == ["login"]
    assert str(installation.login) in checks["login"]["detail"]
    assert "just-one-secret-word" not in json.dumps(checks)


def test_where_no_login_is_needed_none_is_missed(installation):
    with login_file(installation, None):
        checks = installation.examined(recheck_interval=0)
    assert checks["login"]["status"] == SKIP


# The token folder


@pytest.fixture
def elsewhere(tmp_path):
    """Make another token folder."""
    return token_folder(tmp_path / "tokens")


def test_a_folder_that_is_not_there_fails_and_is_not_made(installation, tmp_path):
    checks = installation.examined(token_folder_name=tmp_path / "tokens")
    assert failed(checks) == ["store"]
    assert f"{tmp_path}/tokens: there is no such folder" in checks["store"]["detail"]
    assert "systemctl start vnctoken" in checks["store"]["advice"]
    assert checks["proxy"]["status"] == SKIP
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; the next test does without")
def test_a_folder_of_another_user_is_left_alone_and_the_command_for_that_user_is_named(installation, elsewhere):
    os.chown(elsewhere, 65534, -1)
    os.chown(elsewhere.with_name("tokens.new"), 65534, -1)
    checks = installation.examined(token_folder_name=elsewhere)
    assert failed(checks) == ["store"]
    assert f"{elsewhere} is nobody's and this is root" in checks["store"]["detail"]
    assert checks["store"]["advice"] == "sudo -u nobody vnctoken-server --doctor"
    assert {checks["proxy"]["status"], checks["resolver"]["status"]} == {SKIP}
    assert files(elsewhere) == files(elsewhere.with_name("tokens.new")) == {}


def test_who_is_not_the_owner_is_told_who_is(elsewhere):
    check = check_folder(elsewhere, os.geteuid() + 1)
    assert check.status == FAIL
    assert check.advice.startswith("sudo -u ")


@pytest.mark.parametrize("name", ["tokens", "tokens.new"])
def test_a_folder_that_is_read_only_fails(installation, elsewhere, name):
    folder = elsewhere.with_name(name)
    folder.chmod(0o500)
    checks = installation.examined(token_folder_name=elsewhere, proxy_address=f"127.0.0.1:{free_port()}")
    folder.chmod(0o700)
    assert "store" in failed(checks)
    assert f"{folder} has mode 0500" in checks["store"]["detail"]
    assert checks["store"]["advice"] == f"chmod 700 {folder}"


def test_a_file_in_the_place_of_the_folder_fails(elsewhere):
    elsewhere.rmdir()
    elsewhere.touch()
    assert check_folder(elsewhere, os.geteuid()).detail == f"{elsewhere} is not a folder"


def test_a_folder_that_everybody_can_look_into_is_a_warning(installation):
    installation.tokens.chmod(0o755)
    checks = installation.examined()
    installation.tokens.chmod(0o700)
    assert failed(checks) == []
    assert checks["store"]["status"] == WARN
    assert checks["store"]["advice"] == f"chmod 700 {installation.tokens}"


def test_a_token_that_cannot_be_written_fails_with_the_reason(installation, elsewhere):
    (elsewhere / f"one-{PROBE_VM_ID}").mkdir()
    checks = installation.examined(token_folder_name=elsewhere)
    assert failed(checks) == ["store"]
    assert "Cannot create VNC proxy token" in checks["store"]["detail"]
    assert f"ls -ld {elsewhere}" in checks["store"]["advice"]


# The proxy


PLUGINS = f"""
{UNPICKLABLE}
class Fixed:
    def __init__(self, source):
        self.target = source.split("/")[-1].split(":")

    def lookup(self, token):
        return self.target
"""


@pytest.fixture
def plugins(tmp_path):
    (tmp_path / "plugins.py").write_text(PLUGINS, encoding="utf-8")
    (tmp_path / "start.py").write_text(STARTING_WITHOUT_FORK.format(how="spawn"), encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


def test_a_proxy_that_cannot_connect_is_told_apart(installation, plugins):
    with websockify(f"127.0.0.1:{free_port()}", plugin="plugins.Fixed", env=plugins) as proxy:
        checks = installation.examined(proxy_address=f"127.0.0.1:{proxy.port}")
    assert failed(checks) == ["proxy"]
    assert "found a probe token, but cannot connect" in checks["proxy"]["detail"]
    assert "IPAddressDeny" in checks["proxy"]["advice"]


def test_a_proxy_that_leads_somewhere_else_is_told_apart(installation, plugins):
    with screen() as port, websockify(f"127.0.0.1:{port}", plugin="plugins.Fixed", env=plugins) as proxy:
        checks = installation.examined(proxy_address=f"127.0.0.1:{proxy.port}")
    assert failed(checks) == ["proxy"]
    assert "took a probe token, but led elsewhere" in checks["proxy"]["detail"]


def test_a_proxy_that_accepts_and_closes_is_told_apart(installation, tmp_path, plugins):
    """As under Python 3.14, where websockify does not fork (novnc/websockify#643)."""
    with websockify(tmp_path, command=(tmp_path / "start.py",), plugin="plugins.Locked", env=plugins) as proxy:
        checks = installation.examined(proxy_address=f"127.0.0.1:{proxy.port}")
    assert failed(checks) == ["proxy"]
    assert "accepted and closed without a byte" in checks["proxy"]["detail"]


def test_a_proxy_that_wants_a_password_is_told_apart(installation):
    auth = ("--auth-plugin", "BasicHTTPAuth", "--auth-source", "user:password")
    with websockify(installation.tokens, *auth) as proxy:
        checks = installation.examined(proxy_address=f"127.0.0.1:{proxy.port}")
    assert failed(checks) == ["proxy"]
    assert "refuses the websocket handshake" in checks["proxy"]["detail"]


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_a_proxy_is_reached_at_other_addresses_too(installation, host):
    if host == "[::1]" and not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    listen = host if host == "[::1]" else "127.0.0.1"
    with websockify(installation.tokens, host=f"{listen}:") as proxy:
        checks = installation.examined(proxy_address=f"'{host}:{proxy.port}'")
    assert checks["proxy"]["status"] == OK


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (Config(token_folder_name="/t"), "--token-plugin=TokenFile --token-source=/t"),
        (
            Config(token_store="redis", redis_servers=(("r1", 1), ("r2", 2)), redis_password_file="/p"),
            "--token-plugin=TokenRedis --token-source=r1:1:0:PASSWORD:vnctoken of websockify 0.13 or newer",
        ),
        (
            Config(token_store="jwt", jwt_key_files=("/new", "/old")),
            "--token-plugin=JWTTokenApi --token-source=/new of vnctoken-websockify",
        ),
        (
            Config(token_folder_name="/t", resolver_listen=("::1", 2647)),
            (
                "--token-plugin=TokenFile --token-source=/t"
                " (or --token-plugin=JSONTokenApi --token-source=http://[::1]:2647/token/%s)"
            ),
        ),
    ],
)
def test_the_options_that_a_proxy_needs_are_those_of_the_store(config, options):
    assert token_options(config) == options


# What does not answer, or is another program, everywhere at once


def test_where_nobody_listens_that_is_what_is_said(installation):
    checks = installation.examined(**everywhere(free_port()))
    assert failed(checks) == EVERYWHERE
    for name in EVERYWHERE[1:]:
        assert checks[name]["detail"].endswith(": nobody listens there")
    assert "systemctl status vnctoken-websockify" in checks["proxy"]["advice"]
    assert "systemctl status vnctoken;" in checks["server"]["advice"]


def test_another_web_server_is_called_another_program(installation):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        other.RequestHandlerClass.log_message = lambda *_: None
        thread = threading.Thread(target=other.serve_forever, args=(0.05,))
        thread.start()
        try:
            checks = installation.examined(**everywhere(other.server_port))
        finally:
            other.shutdown()
            thread.join()
    assert failed(checks) == EVERYWHERE
    assert "another program listens there, not websockify" in checks["proxy"]["detail"]
    assert "ss -ltnp" in checks["proxy"]["advice"]
    for name in EVERYWHERE[2:]:
        assert checks[name]["detail"].endswith("the answer is HTTP status 501 Not Implemented")


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers there does not speak HTTP"),
        (b"", "the connection was closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "another program answers, not vnctoken-server"),
    ],
)
def test_what_is_no_service_of_ours_is_told_apart(installation, says, problem):
    with answering(says) as other:
        checks = installation.examined(**everywhere(other.server_address[1]))
    assert failed(checks) == EVERYWHERE
    for name in ("server", "public_url"):
        assert checks[name]["detail"].endswith(f": {problem}")


def test_oned_at_the_services_port_is_no_vnctoken_server(installation, cloud):
    checks = installation.examined(port=re.search(r":(\d+)/", cloud.url).group(1))
    assert failed(checks) == ["server"]
    assert "another program answers, not vnctoken-server" in checks["server"]["detail"]


def test_a_port_that_is_not_known_is_skipped(installation):
    checks = installation.examined(port=0, resolver_listen="127.0.0.1:0")
    assert failed(checks) == []
    assert (checks["server"]["status"], checks["resolver"]["status"]) == (SKIP, SKIP)


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'"])
def test_a_service_at_every_address_is_asked_at_loopback(installation, host):
    checks = installation.examined(host=host)
    assert {"0.0.0.0": "http://127.0.0.1:", "'::'": "http://[::1]:"}[host] in checks["server"]["detail"]


# The resolver


def test_a_proxy_that_asks_the_resolver_opens_the_probe(whole):
    url = f"http://{whole.settings['resolver_listen']}/token/%s"
    with websockify(url, plugin="JSONTokenApi") as proxy:
        checks = whole.examined(proxy_address=f"127.0.0.1:{proxy.port}")
    assert failed(checks) == []
    assert checks["proxy"]["status"] == OK


def test_a_resolver_at_a_unix_socket_resolves_the_probe(tmp_path, cloud):
    listen = f"unix:{tmp_path}/socket"
    with installed(tmp_path / "one", cloud, resolver_listen=listen) as installation:
        checks = installation.examined()
    assert failed(checks) == []
    assert f"{listen} resolved a probe token" in checks["resolver"]["detail"]
    checks = installation.examined()
    assert "No such file or directory" in checks["resolver"]["detail"]


def test_with_verify_on_connect_a_probe_token_opens_though_oned_knows_no_such_vm(tmp_path, cloud):
    at = f"127.0.0.1:{free_port()}"
    settings = {"resolver_listen": at, "verify_on_connect": "yes", "recheck_interval": 1}
    source = f"http://{at}/token/%s"
    with installed(tmp_path, cloud, "JSONTokenApi", source, **settings) as installation:
        checks = installation.examined()
    assert (checks["resolver"]["status"], checks["proxy"]["status"]) == (OK, OK)


def test_where_websockify_cannot_read_redis_by_itself_the_resolver_is_advised():
    redis = {"token_store": "redis", "redis_sentinel": "mymaster"}
    resolver = "--token-plugin=JSONTokenApi --token-source=http://127.0.0.1:2647/token/%s"
    assert token_options(Config(**redis, resolver_listen=("127.0.0.1", 2647))) == resolver
    assert "TokenRedis knows no Sentinel" in token_options(Config(**redis))
    assert "TokenRedis --token-source=127.0.0.1:6379" in token_options(Config(token_store="redis"))


def test_no_resolver_is_no_failure(installation):
    checks = installation.examined()
    assert checks["resolver"]["status"] == SKIP


# The other stores


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "jwt.key"
    path.write_text(base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("="), encoding="utf-8")
    path.chmod(0o600)
    return path


def test_tokens_that_carry_their_target_are_read_by_the_proxy(tmp_path, cloud, key):
    settings = {"token_store": "jwt", "jwt_key_files": key}
    with installed(tmp_path / "one", cloud, "JWTTokenApi", key, **settings) as installation:
        checks = installation.examined()
        assert failed(checks) == []
        assert (checks["store"]["status"], checks["proxy"]["status"]) == (OK, OK)
        assert checks["login"]["status"] == SKIP
        key.chmod(0o644)
        checks = installation.examined()
        assert failed(checks) == []
        assert checks["store"]["advice"] == f"chmod o= {key}"
        key.unlink()
        checks = installation.examined()
    assert failed(checks) == ["store"]
    assert str(key) in checks["store"]["detail"]


def test_tokens_in_redis_are_read_by_the_proxy(tmp_path, cloud):
    port = free_port()
    settings = {"token_store": "redis", "redis_servers": f"127.0.0.1:{port}"}
    source = f"127.0.0.1:{port}" + (":::vnctoken" if TOKEN_REDIS_HAS_NAMESPACES else "")
    server = (program("redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path)
    with (
        running(*server, ready="Ready to accept connections") as redis,
        installed(tmp_path / "one", cloud, "TokenRedis", source, **settings) as installation,
    ):
        checks = installation.examined()
        assert checks["store"]["status"] == OK
        if TOKEN_REDIS_HAS_NAMESPACES:
            assert failed(checks) == []
            assert checks["proxy"]["status"] == OK
        else:
            assert failed(checks) == ["proxy"]
            assert "of websockify 0.13 or newer" in checks["proxy"]["advice"]
        redis.stop()
        checks = installation.examined()
    assert failed(checks) == ["store"]
    assert f"redis-cli -h 127.0.0.1 -p {port} ping" in checks["store"]["advice"]
    assert checks["proxy"]["status"] == SKIP


# The way through the web server


@pytest.fixture(scope="module")
def front(installation):
    oned, proxy = (
        int(re.search(r":(\d+)(/|$)", installation.settings[key])[1]) for key in ("one_xmlrpc", "proxy_address")
    )
    with web_server("nginx", Upstreams(oned, installation.settings["port"], proxy)) as running_front:
        yield running_front


def test_a_certificate_that_is_trusted_is_good(installation, front):
    url = f"https://localhost:{front.https_port}/RPC2/vnctoken"
    code, output, _ = installation.doctor(public_url=url, environment={"SSL_CERT_FILE": str(front.certificate)})
    assert code == 0
    assert f"{url} leads to vnctoken-server, with a good certificate" in output


def test_a_certificate_that_is_not_trusted_fails(installation, front):
    checks = installation.examined(public_url=f"https://localhost:{front.https_port}/RPC2/vnctoken")
    assert failed(checks) == ["public_url"]
    assert "its certificate is not trusted here" in checks["public_url"]["detail"]


def test_a_certificate_for_another_host_fails(installation, front):
    # A name for 127.0.0.1 that is in no certificate.
    url = f"https://127.1:{front.https_port}/RPC2/vnctoken"
    _, output, _ = installation.doctor(public_url=url, environment={"SSL_CERT_FILE": str(front.certificate)})
    assert f"FAIL public_url {url}: its certificate is for another host -> " in output


def test_a_path_that_leads_to_oned_fails(installation, front):
    url = f"https://localhost:{front.https_port}/RPC2"
    _, output, _ = installation.doctor(public_url=url, environment={"SSL_CERT_FILE": str(front.certificate)})
    assert f"FAIL public_url {url}: another program answers, not vnctoken-server -> " in output


def test_https_at_a_port_without_it_fails(installation):
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        checks = installation.examined(public_url=f"https://127.0.0.1:{plain.server_address[1]}/RPC2")
    assert failed(checks) == ["public_url"]
    assert ": TLS: " in checks["public_url"]["detail"]


def test_http_is_a_warning(installation):
    checks = installation.examined(public_url=f"http://127.0.0.1:{installation.settings['port']}/RPC2")
    assert failed(checks) == []
    assert checks["public_url"]["status"] == WARN


# The end of what began first


def test_who_reads_another_store_fails_and_is_told_the_right_options(patients):
    checks = patients["another store"].examined()
    assert failed(checks) == ["proxy", "resolver"]
    assert "does not find a probe token" in checks["proxy"]["detail"]
    folder = checks["store"]["detail"].partition(":")[0]
    assert f" --token-source={folder} " in checks["proxy"]["advice"]
    assert "does not find a probe token" in checks["resolver"]["detail"]
    assert checks["resolver"]["advice"] == "systemctl restart vnctoken"


def test_if_everything_hangs_it_takes_40_seconds_at_most(patients):
    checks = patients["hanging"].examined()
    assert patients["hanging"].seconds < 40
    assert failed(checks) == EVERYWHERE
    for name in EVERYWHERE:
        assert re.search(r"no answer .*within \d+ seconds$", checks[name]["detail"]), checks[name]
