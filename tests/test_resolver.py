"""The resolver: what a token opens, for whom and how often; in memory, and behind a real websockify."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import START_SECONDS, Running, free_port, program, running
from test_web import CLIENT, Client, Wire, request
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

from vnctoken.errors import AuthenticationError, ConfigError, OnedError, TokenStoreError
from vnctoken.listener import ListenerService
from vnctoken.resolver import ADMISSION_SECONDS, MAX_ADMISSIONS, MAX_TOKEN_LENGTH, Resolver
from vnctoken.tokens import Grant, LiveToken, fingerprint
from vnctoken.tokens.folder import TokenFolder
from vnctoken.web import ResolverSite

NOON = 1_800_000_000.0
WINDOW = 5
HERE, ELSEWHERE = "203.0.113.9", "203.0.113.8"
TARGET = {"host": "node7", "port": 5907}


class World:
    """A resolver on a token folder, asked over HTTP, and a clock that the tests turn."""

    def __init__(self, folder, *, reuse_window=WINDOW, verify=None, store=None):
        self.clock = Clock()
        self.folder = TokenFolder(folder, Clock(), self.now, ttl=600, tokens_per_vm=8)
        self.folder.prepare()
        self.folder.start()
        self.store = store or self.folder
        self.resolver = Resolver(self.store, self.now, reuse_window=reuse_window, verify=verify)
        self.site = ResolverSite(self.resolver, self.clock, max_connections=10)

    def now(self):
        return NOON + self.clock.seconds()

    def connect(self):
        wire = Wire()
        wire.channel = self.site.buildProtocol(CLIENT)
        wire.channel.makeConnection(wire)
        return Client(wire)

    def issue(self, **options):
        grant = Grant(**{"vm_id": 7, **TARGET, "issued": self.now(), "ttl": 60, **options})
        return done(self.folder.issue(grant))

    def ask(self, path, *clients, verb=b"GET"):
        """Return the client of one question, with X-Real-IP for each of the clients."""
        asking = self.connect()
        fields = [b"X-Real-IP: " + client.encode("latin-1") for client in clients]
        asking.send(request(None, verb=verb, path=path, fields=fields))
        return asking

    def asked(self, token, *clients):
        """Return the status of the answer."""
        return self.ask(f"/token/{token}".encode(), *clients).status

    def used(self):
        return [live.used for live in done(self.folder.live(7))]


def done(coroutine):
    """Return what came of a coroutine that waits for nothing."""
    results = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    (result,) = results
    return result


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "tokens")


def lines(events):
    return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]


# What the websocket proxy is told


def test_a_token_that_is_good_is_answered_with_host_and_port_and_noted_as_used(world):
    token = world.issue()
    world.clock.advance(3)
    answer = world.ask(f"/token/{token}".encode())
    assert (answer.status, json.loads(answer.body)) == (200, TARGET)
    assert answer.headers[b"Content-Type"] == b"application/json"
    assert world.used() == [NOON + 3]


def test_an_ipv6_target_is_told_bare(world):
    token = world.issue(host="2001:db8::7")
    answer = world.ask(f"/token/{token}".encode())
    assert json.loads(answer.body) == {"host": "2001:db8::7", "port": 5907}


@pytest.mark.parametrize(
    "token", ["", "no-such-token", "0" * MAX_TOKEN_LENGTH, "0" * (MAX_TOKEN_LENGTH + 1), "%ff", "%00", "..", "a/b"]
)
@pytest.mark.parametrize(("clients", "status"), [((), 404), ((HERE,), 403)])
def test_a_token_that_is_none_is_refused(world, token, clients, status):
    world.issue()
    assert world.asked(token, *clients) == status


@pytest.mark.parametrize(("length", "is_looked_up"), [(MAX_TOKEN_LENGTH, True), (MAX_TOKEN_LENGTH + 1, False)])
def test_the_store_is_not_bothered_with_what_is_longer_than_any_token(tmp_path, length, is_looked_up):
    asked = []

    class Store:
        async def find(self, token):
            asked.append(token)

    assert World(tmp_path / "tokens", store=Store()).asked("x" * length) == 404
    assert bool(asked) == is_looked_up


@pytest.mark.parametrize("path", [b"/", b"/token", b"/tokens/x", b"/RPC2", b"/x/token/y", b"//token/x"])
def test_there_is_nothing_at_other_paths(world, path):
    assert world.ask(path).status == 404


@pytest.mark.parametrize("verb", [b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS"])
def test_another_verb_is_not_allowed_and_uses_no_token(world, verb):
    token = world.issue()
    answer = world.ask(f"/token/{token}".encode(), verb=verb)
    assert (answer.status, answer.headers[b"Allow"]) == (405, b"GET")
    assert world.used() == [0]


@pytest.mark.parametrize("path", ["/token/{}?x=y", "/token/{}?", "/token/%{}"])
def test_a_token_may_be_encoded_and_a_query_is_left_aside(world, path):
    token = world.issue()
    if "%" in path:
        token = f"{ord(token[0]):02x}{token[1:]}"
    assert world.ask(path.format(token).encode()).status == 200


def test_a_body_has_no_place_in_a_question(world):
    asking = world.connect()
    asking.send(request(b"x" * 5000, verb=b"GET", path=b"/token/x"))
    assert asking.status == 413


def test_one_connection_too_many_is_refused(world):
    clients = [world.connect() for _ in range(11)]
    assert [client.wire.half_closed for client in clients] == [False] * 10 + [True]
    assert clients[-1].status == 503


def test_a_token_that_has_expired_opens_nothing(world):
    token = world.issue(ttl=60)
    world.clock.advance(59)
    assert world.asked(token) == 200
    world.clock.advance(1)
    assert world.asked(token) == 404


def test_a_token_that_was_taken_back_opens_nothing_from_that_moment_on(world):
    token, other = world.issue(), world.issue(vm_id=8, port=5908)
    assert world.asked(token) == 200
    assert done(world.folder.revoke(7)) == 1
    assert (world.asked(token), world.asked(other)) == (404, 200)


# Single use


def test_a_token_for_a_single_use_opens_within_the_reuse_window_and_then_never_again(world):
    token = world.issue(single_use=True)
    world.clock.advance(20)
    assert world.asked(token) == 200
    world.clock.advance(WINDOW - 0.1)
    assert world.asked(token) == 200
    world.clock.advance(0.1)
    assert world.asked(token) == 404


def test_another_token_opens_again_and_again(world):
    token = world.issue()
    for _ in range(3):
        assert world.asked(token) == 200
        world.clock.advance(WINDOW + 1)


def test_without_a_reuse_window_one_use_is_one(tmp_path):
    world = World(tmp_path / "tokens", reuse_window=0)
    token = world.issue(single_use=True)
    assert world.asked(token) == 200
    world.clock.advance(0.1)
    assert world.asked(token) == 404


@pytest.mark.parametrize("client", ["", HERE])
@pytest.mark.parametrize("reuse_window", [0, WINDOW])
def test_the_web_servers_question_uses_no_token_up(tmp_path, client, reuse_window):
    world = World(tmp_path / "tokens", reuse_window=reuse_window)
    token = world.issue(single_use=True, client=client)
    for _ in range(3):
        assert world.asked(token, HERE) == 200
        world.clock.advance(ADMISSION_SECONDS)
    assert world.used() == [0]
    assert world.asked(token, HERE) == 200
    world.clock.advance(ADMISSION_SECONDS - 0.1)
    assert world.asked(token) == 200


# Clients


def test_a_token_for_one_client_opens_after_the_web_server_has_asked_for_that_client(world):
    token = world.issue(client=HERE)
    assert world.asked(token) == 404
    assert world.asked(token, ELSEWHERE) == 403
    assert world.asked(token) == 404
    assert world.asked(token, HERE) == 200
    assert world.asked(token) == 200


def test_the_web_server_is_told_no_target(world):
    answer = world.ask(f"/token/{world.issue()}".encode(), HERE)
    assert (answer.status, json.loads(answer.body)) == (200, {})


@pytest.mark.parametrize(("reuse_window", "seconds"), [(0, ADMISSION_SECONDS), (WINDOW, WINDOW), (60, 60)])
def test_the_proxys_question_has_to_follow_soon(tmp_path, reuse_window, seconds):
    world = World(tmp_path / "tokens", reuse_window=reuse_window)
    token = world.issue(client=HERE, ttl=600)
    for waiting, status in ((seconds - 0.1, 200), (seconds, 404)):
        assert world.asked(token, HERE) == 200
        world.clock.advance(waiting)
        assert world.asked(token) == status


def test_somebody_elses_attempt_does_not_lock_the_right_client_out(world):
    token = world.issue(client=HERE)
    assert world.asked(token, HERE) == 200
    assert world.asked(token, ELSEWHERE) == 403
    assert world.asked(token) == 200


def test_one_tokens_admission_is_no_others(world):
    token, other = world.issue(client=HERE), world.issue(client=HERE)
    assert world.asked(token, HERE) == 200
    assert world.asked(other) == 404


@pytest.mark.parametrize("client", [HERE, "", "nonsense"])
def test_a_token_for_everybody_is_for_whoever_connects(world, client):
    assert world.asked(world.issue(), client) == 200


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("203.0.113.9", "::ffff:203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:cb00:7109", "203.0.113.9"),
        ("2001:db8::7", "2001:0DB8:0:0::0:7"),
        ("2001:DB8::7", " 2001:db8::7 "),
    ],
)
def test_an_address_is_the_same_however_it_is_written(world, bound, asked):
    assert world.asked(world.issue(client=bound), asked) == 200


@pytest.mark.parametrize(
    "asked", ["", "unix:", "203.0.113.90", "203.0.113.9, 203.0.113.9", "3405803785", "\xff", "::9"]
)
def test_what_is_not_that_address_is_refused(world, asked):
    assert world.asked(world.issue(client=HERE), asked) == 403


def test_of_two_addresses_none_is_believed(world):
    token = world.issue(client=HERE)
    assert world.ask(f"/token/{token}".encode(), HERE, ELSEWHERE).status == 403
    assert world.ask(f"/token/{token}".encode(), HERE, HERE).status == 403


def test_only_so_many_tokens_are_admitted_at_a_time_and_the_oldest_gives_way(tmp_path):
    class Store:
        async def find(self, token):
            return LiveToken(token, Grant(7, **TARGET, issued=NOON, ttl=60, client=HERE))

        async def use(self, token, reuse_window):
            return await self.find(token)

    world = World(tmp_path / "tokens", store=Store())
    resolver = world.resolver
    for number in range(MAX_ADMISSIONS + 1):
        assert done(resolver.admit(f"token-{number}", HERE))
    assert done(resolver.resolve("token-0")) is None
    assert done(resolver.resolve("token-1")) == ("node7", 5907)
    assert done(resolver.resolve(f"token-{MAX_ADMISSIONS}")) == ("node7", 5907)


# Asking oned again


class Oned:
    """Stands for oned: knows whether the console is still there, or fails."""

    def __init__(self, *, says=True):
        self.says = says
        self.asked = []

    async def __call__(self, live):
        self.asked.append((live.fingerprint, live.grant.vm_id))
        if isinstance(self.says, Exception):
            raise self.says
        if isinstance(self.says, Deferred):
            return await self.says
        return self.says


def test_a_console_that_oned_knows_opens(tmp_path):
    oned = Oned()
    world = World(tmp_path / "tokens", verify=oned)
    token = world.issue()
    assert world.asked(token) == 200
    assert oned.asked == [(fingerprint(token), 7)]


def test_a_console_that_oned_knows_no_more_does_not_open_and_the_token_is_taken_back(tmp_path):
    world = World(tmp_path / "tokens", verify=Oned(says=False))
    token, other = world.issue(), world.issue()
    assert world.asked(token) == 404
    assert [live.fingerprint for live in done(world.folder.live(7))] == [fingerprint(other)]


def test_a_store_that_cannot_take_tokens_back_is_not_asked_to(tmp_path):
    class Store:
        revocable = False

        async def find(self, token):
            return LiveToken(token, Grant(7, **TARGET, issued=NOON, ttl=60))

    world = World(tmp_path / "tokens", verify=Oned(says=False), store=Store())
    assert world.asked("x") == 404


@pytest.mark.parametrize("trouble", [OnedError("oned does not answer"), AuthenticationError("alice:hunter2")])
def test_when_oned_cannot_be_asked_no_console_opens_and_the_token_stays_as_it_was(tmp_path, trouble):
    world = World(tmp_path / "tokens", verify=Oned(says=trouble))
    token = world.issue(single_use=True)
    with capturedLogs() as events:
        answer = world.ask(f"/token/{token}".encode())
    assert (answer.status, answer.body) == (503, b"this cannot be told now; the log says why\n")
    assert world.used() == [0]
    reason = "oned does not answer" if isinstance(trouble, OnedError) else "oned does not tell the service about the VM"
    (line,) = lines(events)
    assert line.startswith(f"resolver token={fingerprint(token)} vm=7 not known reason={reason}")
    assert "hunter2" not in line


def test_oned_is_not_asked_about_what_opens_nothing_anyway_nor_for_the_web_server(tmp_path):
    oned = Oned()
    world = World(tmp_path / "tokens", verify=oned)
    token = world.issue(client=HERE)
    for asked in (("unknown",), (token,), (token, ELSEWHERE), (token, HERE)):
        world.asked(*asked)
    assert oned.asked == []


@pytest.mark.parametrize("happening", ["revoke", "expire"])
def test_a_token_that_dies_while_oned_is_asked_opens_nothing(tmp_path, happening):
    oned = Oned(says=Deferred())
    world = World(tmp_path / "tokens", verify=oned)
    token = world.issue()
    answer = world.ask(f"/token/{token}".encode())
    if happening == "revoke":
        done(world.folder.revoke(7))
    else:
        world.clock.advance(60)
    oned.says.callback(True)
    assert answer.status == 404


def test_who_goes_away_while_oned_is_asked_has_not_used_the_token(tmp_path):
    oned = Oned(says=Deferred())
    world = World(tmp_path / "tokens", verify=oned)
    token = world.issue(single_use=True)
    with capturedLogs() as events:
        world.ask(f"/token/{token}".encode()).hang_up()
    assert lines(events) == [f"resolver token={fingerprint(token)} vm=7 cancelled: who asked went away"]
    assert world.used() == [0]


# Trouble


@pytest.mark.parametrize("clients", [(), (HERE,)])
def test_a_store_that_cannot_be_asked_is_no_reason_to_say_that_a_token_is_wrong(tmp_path, clients):
    class Store:
        async def find(self, token):
            raise TokenStoreError("Redis does not answer")

    with capturedLogs() as events:
        assert World(tmp_path / "tokens", store=Store()).asked("x", *clients) == 503
    assert lines(events) == [f"resolver token={fingerprint('x')} vm=- not known reason=Redis does not answer"]


def test_an_error_of_ours_is_a_500_without_its_text_and_is_logged(tmp_path):
    class Store:
        async def find(self, token):
            raise ZeroDivisionError("hunter2")

    with capturedLogs() as events:
        answer = World(tmp_path / "tokens", store=Store()).ask(b"/token/x")
    assert (answer.status, answer.body) == (500, b"internal error\n")
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]


def test_every_question_is_one_line_in_the_log_and_no_token_is_in_it(world):
    token = world.issue(client=HERE)
    with capturedLogs() as events:
        for question in ((token,), (token, ELSEWHERE), (token, HERE), (token,), ("no-such-token",)):
            world.asked(*question)
    named = f"resolver token={fingerprint(token)} vm=7"
    assert lines(events) == [
        f"{named} refused reason=for one client, and the web server did not ask for one",
        f"{named} refused reason=for another client",
        f"{named} admitted",
        f"{named} opened",
        f"resolver token={fingerprint('no-such-token')} vm=- refused reason=unknown, expired or taken back",
    ]


# Real programs

RESOLVER = """
import json, sys
from pathlib import Path
from twisted.internet import reactor, stdio
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner
from twisted.protocols.basic import LineOnlyReceiver
from vnctoken.listener import ListenerService
from vnctoken.log import to_journal
from vnctoken.listener import ListenerService
from vnctoken.resolver import Resolver
from vnctoken.tokens import Grant
from vnctoken.tokens.folder import TokenFolder
from vnctoken.web import ResolverSite

folder, listener, grants = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
globalLogBeginner.beginLoggingTo([to_journal(3, sys.stdout)], redirectStandardIO=False)
later = 0.0

def now():
    return 1_800_000_000.0 + reactor.seconds() + later

class Told(LineOnlyReceiver):
    delimiter = b"\\n"

    def lineReceived(self, line):
        global later
        command, number = line.decode().split()
        if command == "wait":
            later += float(number)
        else:
            Deferred.fromCoroutine(store.revoke(int(number)))
        print("did", line.decode(), flush=True)

store = TokenFolder(folder, reactor, now, ttl=600, tokens_per_vm=8)
store.prepare()
store.start()
for grant in grants:
    token = store.issue(Grant(issued=now(), **grant))
    Deferred.fromCoroutine(token).addCallback(lambda token: open(f"{folder}.issued", "a").write(f"{token}\\n"))
site = ResolverSite(Resolver(store, now, reuse_window=5, verify=None), reactor, max_connections=50)
at = Path(listener) if isinstance(listener, str) else tuple(listener)
service = ListenerService(site, reactor, at, setting=":resolver_listen:", drain_seconds=1)
service.startService()
reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
told = stdio.StandardIO(Told())
reactor.callWhenRunning(lambda: print("resolver listens on", service.address, flush=True))
reactor.run()
"""


@dataclass
class Answering:
    """A running resolver, where it listens, and the tokens that it has issued."""

    at: str
    tokens: list[str]
    process: Running

    @property
    def source(self):
        """What websockify takes for --token-source."""
        return f"http://{self.at}/token/%s"

    def tell(self, command):
        """Let time pass ("wait 10"), or take a VM's tokens back ("revoke 7")."""
        self.process.process.stdin.write(f"{command}\n")
        self.process.process.stdin.flush()
        self.process.wait_for(f"^did {command}$")


@contextlib.contextmanager
def resolver(folder, *grants, listener=("127.0.0.1", 0)):
    """Run a resolver on a token folder with tokens for grants, each a VM's id with what else is particular."""
    grants = [{"vm_id": number, "host": "127.0.0.1", "ttl": 600, **grant} for number, grant in enumerate(grants)]
    at = str(listener) if isinstance(listener, Path) else listener
    command = (sys.executable, "-c", RESOLVER, folder, json.dumps(at), json.dumps(grants))
    with running(*command, ready="^resolver listens on", stdin=subprocess.PIPE) as process:
        try:
            listens_on = process.wait_for(r"^resolver listens on (\S+)")[1]
            issued = Path(f"{folder}.issued")
            tokens = issued.read_text(encoding="utf-8").split()[-len(grants) :] if grants else []
            yield Answering(listens_on, tokens, process)
        finally:
            process.stop()
            process.process.stdin.close()
    assert not [token for token in tokens if token in process.output]


def without_proxy():
    """Return the environment for a websockify, whose HTTP client would take a web proxy from there."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


PROXIES = {
    "ours": (sys.executable, "-m", "vnctoken.proxy"),
    "the newest websockify": (sys.executable, "-m", "websockify"),
    "Debian's websockify": ("/usr/bin/websockify",),
}


@contextlib.contextmanager
def websockify(source, name="ours"):
    """Run a websockify that asks a resolver for a block's time; yield what opens a console, or says False."""
    command = PROXIES[name]
    program(command[0])
    port = free_port()
    plugin = ("--token-plugin=JSONTokenApi", f"--token-source={source}")
    with running(*command, *plugin, f"127.0.0.1:{port}", ready="proxying from", env=without_proxy()) as process:

        def opens(token):
            connection = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
            try:
                console = WebSocket.connect(connection, f"/websockify?token={token}")
            except HandshakeRefusedError:
                return False
            with contextlib.closing(console):
                return console.receive_exactly(len(GREETING)) == GREETING

        opens.port, opens.process = port, process
        yield opens


@pytest.mark.parametrize("name", PROXIES)
def test_a_websockify_opens_the_consoles_that_the_resolver_says(tmp_path, name):
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(screen())
        grants = ({"port": port}, {"port": port, "ttl": 60}, {"port": port, "single_use": True}, {"port": port})
        answering = stack.enter_context(resolver(tmp_path / "tokens", *grants))
        good, short, once, taken = answering.tokens
        opens = stack.enter_context(websockify(answering.source, name))
        assert [opens(token) for token in (good, good, short, taken, once, once)] == [True] * 6
        assert not opens(secrets.token_hex(16))

        answering.tell("revoke 3")
        assert (opens(taken), opens(good)) == (False, True)
        answering.tell("wait 6")
        assert (opens(once), opens(good)) == (False, True)
        answering.tell("wait 60")
        assert (opens(short), opens(good)) == (False, True)

        for token in (good, once):
            answering.process.wait_for(f"resolver token={fingerprint(token)} vm=. opened")
        answering.process.stop()
        assert not opens(good)


def test_a_resolver_on_a_unix_socket_answers_its_group_alone_and_leaves_nothing_behind(tmp_path):
    curl = program("curl")
    path = tmp_path / "resolver.sock"
    with resolver(tmp_path / "tokens", {"port": 5907}, listener=path) as answering:
        assert answering.at == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        (token,) = answering.tokens
        command = (curl, "--silent", "--unix-socket", path, f"http://resolver/token/{token}")
        answer = subprocess.run(command, capture_output=True, check=True, timeout=START_SECONDS)
    assert json.loads(answer.stdout) == {"host": "127.0.0.1", "port": 5907}
    assert not path.exists()


def test_the_socket_of_a_resolver_that_was_killed_is_replaced(tmp_path):
    path = tmp_path / "resolver.sock"
    with resolver(tmp_path / "tokens", listener=path) as killed:
        killed.process.process.kill()
        killed.process.process.wait(START_SECONDS)
    assert stat.S_ISSOCK(path.stat().st_mode)
    with resolver(tmp_path / "tokens", listener=path), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))


def listening(path):
    site = ResolverSite(None, Clock(), max_connections=1)
    return ListenerService(site, reactor, path, setting=":resolver_listen:", drain_seconds=1)


def test_a_socket_that_answers_is_left_to_who_listens_there(tmp_path):
    path = tmp_path / "resolver.sock"
    with resolver(tmp_path / "tokens", listener=path):
        service = listening(path)
        with pytest.raises(CannotListenError, match="Address already in use"):
            service.startService()
        assert service.stopService().called, "what could not start can be stopped"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path, kind):
    path = tmp_path / "resolver.sock"
    match kind:
        case "file":
            path.write_text("mine", encoding="utf-8")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r":resolver_listen: is 'unix:.*no socket"):
        listening(path).startService()
    assert path.is_symlink() or path.exists()


def test_what_took_the_sockets_place_meanwhile_is_left_alone_too(tmp_path):
    path = tmp_path / "resolver.sock"
    with resolver(tmp_path / "tokens", listener=path) as answering:
        path.unlink()
        path.write_text("mine", encoding="utf-8")
        assert answering.process.stop() == 0
    assert path.read_text(encoding="utf-8") == "mine"
    assert "Traceback" not in answering.process.output
