"""Tokens that carry their target: what websockify's own JWTTokenApi makes of them, and what it costs to trust them."""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time

import jwcrypto.jwt
import pytest
from conftest import ROOT, START_SECONDS, free_port, ipv6_loopback, program, running
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from outcomes import result_of
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from websockify.token_plugins import JWTTokenApi
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

from vnctoken.errors import ActionError, ConfigError, ErrorCode, TokenStoreError
from vnctoken.tokens import Grant
from vnctoken.tokens.jwt import JwtStore

AT = 1_790_000_000.25
GRANT = Grant(vm_id=7, host="hypervisor-1.example.org", port=5907, issued=AT, ttl=600, user="alice")


def new_key():
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


def written(path, content):
    """Replace a key file as it has to be done: whole."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.chmod(0o600)
    new.replace(path)
    return path


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(AT)
    return clock


@pytest.fixture
def key(tmp_path):
    """Return the path of a key file."""
    return written(tmp_path / "jwt.key", new_key())


@pytest.fixture
def store(key, clock):
    return JwtStore([str(key)], clock.seconds)


@pytest.fixture
def plugin(key, monkeypatch):
    """Return websockify's own reader, in the process of which an encrypted token is expected."""
    monkeypatch.setattr(jwcrypto.jwt, "JWT_expect_type", False)
    return JWTTokenApi(str(key))


# What a token is


@pytest.mark.parametrize("host", ["hypervisor-1.example.org", "192.0.2.7", "2001:db8::7"])
def test_websockify_reads_the_target_of_a_token(key, plugin, host):
    store = JwtStore([str(key)], time.time)
    token = result_of(store.issue(Grant(vm_id=7, host=host, port=5907, issued=0, ttl=600)))
    assert plugin.lookup(token) == (host, 5907)


def test_a_token_goes_into_a_url_as_it_is_and_shows_nothing_of_its_target(store):
    token = result_of(store.issue(GRANT))
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", token)
    assert len(token) < 450
    header, *rest = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split(".")]
    assert json.loads(header) == {"alg": "dir", "enc": "A256GCM"}
    assert len(rest) == 4
    for part in rest:
        assert not re.search(rb"hypervisor|alice|HS256|eyJ", part)


def test_no_two_tokens_are_alike(store):
    assert len({result_of(store.issue(GRANT)) for _ in range(100)}) == 100


def test_the_service_finds_what_a_token_grants(store, clock):
    token = result_of(store.issue(GRANT))
    clock.advance(1)
    for found in (result_of(store.find(token)), result_of(store.use(token, 5)), result_of(store.use(token, 0))):
        assert found.grant == GRANT
        assert found.digest == hashlib.sha256(token.encode()).hexdigest()
        assert found.used == 0


def test_a_token_lives_for_its_time_and_no_longer(store, clock):
    token = result_of(store.issue(GRANT))
    clock.advance(599.9)
    assert result_of(store.find(token)) is not None
    clock.advance(0.1)
    assert result_of(store.find(token)) is None
    assert result_of(store.use(token, 5)) is None


def test_websockify_takes_a_token_as_long_as_it_lives_and_no_longer(key, plugin):
    def lookup_after(seconds):
        return plugin.lookup(result_of(JwtStore([str(key)], lambda: time.time() - seconds).issue(GRANT)))

    assert lookup_after(590) == (GRANT.host, GRANT.port)
    assert lookup_after(600.1) is None


def test_a_websockify_whose_clock_is_half_a_minute_behind_takes_fresh_tokens(key, plugin):
    def lookup_behind(seconds):
        return plugin.lookup(result_of(JwtStore([str(key)], lambda: time.time() + seconds).issue(GRANT)))

    assert lookup_behind(30) == (GRANT.host, GRANT.port)
    assert lookup_behind(70) is None


def test_a_token_is_not_good_long_before_its_issue(store, clock):
    token = result_of(store.issue(GRANT))
    assert result_of(store.find(token)) is not None
    clock.rightNow -= 61
    assert result_of(store.find(token)) is None


def test_long_and_foreign_names_fit(store, key, plugin):
    user = "\N{PILE OF POO}" * 256
    grant = Grant(vm_id=2**31 - 1, host="h" * 253, port=65535, issued=AT, ttl=31_622_400, user=user)
    token = result_of(store.issue(grant))
    assert len(token) <= 4096
    assert result_of(store.find(token)).grant == grant
    assert plugin.lookup(result_of(JwtStore([str(key)], time.time).issue(grant))) == (grant.host, grant.port)
    with pytest.raises(TokenStoreError, match="too long"):
        result_of(store.issue(Grant(vm_id=7, host="h", port=5900, issued=AT, ttl=1, user="u" * 4096)))


# What it cannot be


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (lambda store: store.issue(Grant(7, "host", 5900, AT, 600, single_use=True)), "single use"),
        (lambda store: store.issue(Grant(7, "host", 5900, AT, 600, client="203.0.113.9")), "one client"),
        (lambda store: store.issue(Grant(7, "host", 5900, AT, 0)), "for ever"),
        (lambda store: store.revoke(7), "revoke"),
        (lambda store: store.revoke(7, frozenset({"0" * 64})), "revoke"),
        (lambda store: store.live(7), "list"),
    ],
)
def test_what_such_tokens_cannot_do_is_refused_and_the_store_named_that_can(store, asked, limit):
    with pytest.raises(ActionError, match=limit) as refused:
        result_of(asked(store))
    assert refused.value.code == ErrorCode.ACTION
    assert "live until they expire" in str(refused.value)
    assert ":token_store: folder or redis" in str(refused.value)


def test_nobody_knows_which_tokens_there_are(store):
    result_of(store.issue(GRANT))
    assert store.revocable is False
    assert result_of(store.holders(GRANT.host, GRANT.port)) == frozenset()
    assert result_of(store.targets()) == {}
    assert result_of(store.close()) is None


# What is no token

CLAIMS = {"vm": 7, "sub": "alice", "host": "h", "port": 5900, "iat": AT, "nbf": AT - 60, "exp": AT + 600}
OUTER, INNER = {"alg": "dir", "enc": "A256GCM"}, {"alg": "HS256"}


def secret(key):
    return JWK(kty="oct", k=key.read_text(encoding="ascii"))


def signed(key, claims, header=INNER):
    jws = JWS(claims if isinstance(claims, str) else json.dumps(claims, separators=(",", ":")))
    jws.add_signature(secret(key), protected=json.dumps(header, separators=(",", ":")))
    return jws.serialize(compact=True)


def encrypted(key, inside, header=OUTER, **serialized):
    jwe = JWE(inside, json.dumps(header, separators=(",", ":")))
    jwe.add_recipient(secret(key))
    return jwe.serialize(**(serialized or {"compact": True}))


def unsigned(claims):
    parts = ('{"alg":"none"}', json.dumps(claims))
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + "."


def claiming(**changed):
    return lambda key: encrypted(key, signed(key, {**CLAIMS, **changed}))


FORGED = {
    "not signed": lambda key: unsigned(CLAIMS),
    "encrypted, but not signed": lambda key: encrypted(key, unsigned(CLAIMS)),
    "encrypted claims": lambda key: encrypted(key, json.dumps(CLAIMS)),
    "signed, but not encrypted": lambda key: signed(key, CLAIMS),
    "signed in another way": lambda key: encrypted(key, signed(key, CLAIMS, {"alg": "HS256", "typ": "JWT"})),
    "encrypted in another way": lambda key: encrypted(key, signed(key, CLAIMS), {"alg": "A256KW", "enc": "A256GCM"}),
    "encrypted twice": lambda key: encrypted(key, encrypted(key, signed(key, CLAIMS))),
    "as JSON": lambda key: encrypted(key, signed(key, CLAIMS), compact=False),
    "compressed": lambda key: encrypted(key, signed(key, CLAIMS), {**OUTER, "zip": "DEF"}),
    "a compressed bomb": lambda key: encrypted(key, signed(key, " " * 1_000_000), {**OUTER, "zip": "DEF"}),
    "with a key's name": lambda key: encrypted(key, signed(key, CLAIMS), {**OUTER, "kid": "1"}),
    "too long": lambda key: encrypted(key, signed(key, {**CLAIMS, "more": "x" * 4096})),
    "no claims": lambda key: encrypted(key, signed(key, "[]")),
    "no JSON": lambda key: encrypted(key, signed(key, "{")),
    "deep JSON": lambda key: encrypted(key, signed(key, "[" * 1500)),
    "no VM": claiming(vm=None),
    "a wrong port": claiming(port="22"),
    "no host": claiming(host=None),
    "no end": claiming(exp=None),
    "ended": claiming(exp=AT),
    "an end beyond numbers": lambda key: encrypted(key, signed(key, json.dumps(CLAIMS)[:-1] + ', "exp": 1e999}')),
    "an end that is none": lambda key: encrypted(key, signed(key, json.dumps(CLAIMS)[:-1] + ', "exp": NaN}')),
    "not yet": claiming(nbf=AT + 1),
}


def test_the_forger_of_these_tests_can_make_a_good_token(store, key):
    assert result_of(store.find(claiming()(key))).grant.host == "h"


@pytest.mark.parametrize("name", FORGED)
def test_what_is_made_in_another_way_opens_nothing_even_with_the_key(store, key, name):
    assert result_of(store.find(FORGED[name](key))) is None


def test_a_token_made_with_another_key_opens_nothing(store, tmp_path):
    other = written(tmp_path / "other.key", new_key())
    assert result_of(store.find(claiming()(other))) is None


def test_only_one_forged_token_is_too_long_to_be_looked_at(key):
    assert [name for name, forge in FORGED.items() if len(forge(key)) > 4096] == ["too long"]


PART = st.text("ABCXYZabcxyz0189_-", max_size=40)
HEADER = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0"


@given(
    st.text(max_size=200)
    | st.lists(PART, max_size=6).map(".".join)
    | st.tuples(st.just(HEADER), PART, PART, PART, PART).map(".".join)
    | st.from_regex(rf"{HEADER}\.\.[A-Za-z0-9_-]{{16}}\.[A-Za-z0-9_-]{{1,300}}\.[A-Za-z0-9_-]{{22}}", fullmatch=True)
)
@example("")
@example("\ud800")
@example("é" * 10_000)
@example("." * 10_000)
@example(f"{HEADER}." * 300)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_opens_nothing_and_breaks_nothing(store, token):
    assert result_of(store.find(token)) is None
    assert result_of(store.use(token, 5)) is None


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_token_with_another_character_in_it_opens_nothing_else(store, data):
    token = result_of(store.issue(GRANT))
    at = data.draw(st.integers(0, len(token)))
    there = data.draw(st.text(max_size=3))
    found = result_of(store.find(token[:at] + there + token[at + 1 :]))
    # The last character of a part has bits that say nothing.
    assert found is None or found.grant == GRANT


# Keys


def test_the_command_in_the_message_makes_a_key_for_both_sides(tmp_path, plugin, key):
    key.unlink()
    with pytest.raises(ConfigError) as missing:
        JwtStore([str(key)], time.time)
    command = str(missing.value).partition("to make or replace it: ")[2]
    assert "chown oneadmin " in command
    subprocess.run(("sh", "-ec", command.replace("oneadmin", shlex.quote(getpass.getuser()))), check=True)
    store = JwtStore([str(key)], time.time)
    assert store.prepare() == []
    assert key.stat().st_mode & 0o777 == 0o600
    assert plugin.lookup(result_of(store.issue(GRANT))) == (GRANT.host, GRANT.port)
    assert [path.name for path in tmp_path.iterdir()] == [key.name]


GOOD = "kY3zR0mXq1bq0r2E5n4i1yq8pQ7mJ9h2yF0T3uGd_-A"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        (GOOD + "\n", "ends with a line break or a space, with which websockify does not read the key"),
        (GOOD + "=\r\n", "ends with a line break"),
        (GOOD[:-1], "holds 248 bits in 42 characters"),
        (GOOD[:22] + "==", "holds 128 bits in 24 characters"),
        (GOOD + "A", "holds 264 bits in 44 characters"),
        (GOOD + "==", "holds 256 bits in 45 characters"),
        (GOOD.replace("_", "/"), "holds other characters than letters, digits, '-' and '_'"),
        (GOOD.replace("-", "+"), "holds other characters"),
        ("\n" + GOOD, "holds other characters"),
        (b"\xff" * 43, "holds other characters"),
        (PEM, "holds a key in PEM, but only symmetric keys are supported"),
        (GOOD * 100_000, "bits in 4096 characters"),
    ],
)
def test_a_file_without_a_usable_key_is_refused_with_what_is_expected(key, clock, content, problem):
    written(key, content)
    with pytest.raises(ConfigError) as refused:
        JwtStore([str(key)], clock.seconds)
    assert str(refused.value).startswith(f":jwt_key_files: {key} ")
    assert problem in str(refused.value)
    assert "a key of 256 random bits is expected, 43 characters of base64url without a line break" in str(refused.value)
    for piece in (GOOD[:10], "MIIEvQ"):
        assert piece not in str(refused.value)


@pytest.mark.parametrize("content", [GOOD, GOOD + "="])
def test_every_key_that_is_accepted_is_one_for_websockify_too(key, plugin, content):
    written(key, content)
    assert plugin.lookup(result_of(JwtStore([str(key)], time.time).issue(GRANT))) == (GRANT.host, GRANT.port)


def test_websockify_itself_does_not_read_a_key_with_a_line_break(key, plugin):
    token = result_of(JwtStore([str(key)], time.time).issue(GRANT))
    assert plugin.lookup(token) is not None
    key.write_bytes(key.read_bytes() + b"\n")
    assert plugin.lookup(token) is None


def test_what_is_no_file_is_refused(tmp_path, clock):
    os.mkfifo(tmp_path / "pipe")
    for name, problem in {
        "pipe": "is not a regular file",
        ".": "is not a regular file",
        "gone": r"cannot be read \(No such file or directory\)",
        "pipe/file": r"cannot be read \(Not a directory\)",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            JwtStore([f"{tmp_path}/{name}"], clock.seconds)


def test_each_key_file_has_to_be_there_and_one_at_least(key, clock):
    with pytest.raises(ConfigError, match=r"jwt\.key\.old cannot be read"):
        JwtStore([str(key), f"{key}.old"], clock.seconds)
    with pytest.raises(ConfigError, match=r":token_store: is jwt, but :jwt_key_files: names no file"):
        JwtStore([], clock.seconds)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_a_key_that_others_can_get_at_is_warned_of(key, clock, mode, warned):
    key.chmod(mode)
    warnings = JwtStore([str(key)], clock.seconds).prepare()
    assert len(warnings) == warned
    for warning in warnings:
        assert f"{key} has mode {mode:04o}" in warning
        subprocess.run(re.search("as '(.*)' makes it", warning)[1], shell=True, check=True)
        assert JwtStore([str(key)], clock.seconds).prepare() == []


WITHOUT_JWCRYPTO = """
import sys
sys.modules["jwcrypto"] = None
from vnctoken.errors import ConfigError
from vnctoken.tokens.jwt import JwtStore
try:
    JwtStore([sys.argv[1]], lambda: 0)
except ConfigError as error:
    print(error)
"""


def test_without_jwcrypto_it_says_what_to_install(key):
    command = (sys.executable, "-c", WITHOUT_JWCRYPTO, key)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ":token_store: jwt needs jwcrypto: install vnctoken[jwt]\n"


# Keys that change


def test_a_replaced_key_counts_at_once_and_the_one_before_it_is_still_read(key, tmp_path, plugin):
    old = written(tmp_path / "jwt.key.old", new_key())
    store = JwtStore([str(key), str(old)], time.time)
    before = result_of(store.issue(GRANT))

    written(old, key.read_bytes())
    written(key, new_key())

    after = result_of(store.issue(GRANT))
    assert result_of(store.find(before)).grant.host == GRANT.host
    assert result_of(store.find(after)).grant.host == GRANT.host
    assert plugin.lookup(after) == (GRANT.host, GRANT.port)

    written(old, new_key())
    assert result_of(store.find(before)) is None, "nothing is left of a key that was taken away"


def test_no_token_that_is_issued_while_keys_are_replaced_fails(key, tmp_path, plugin):
    old = written(tmp_path / "jwt.key.old", key.read_bytes())
    store = JwtStore([str(key), str(old)], time.time)
    writes, ended = [0], threading.Event()

    def replace_on_and_on():
        while not ended.is_set():
            written(old, key.read_bytes())
            writes[0] += 1
            written(key, new_key())
            writes[0] += 1
            ended.wait(0.005)

    def issued_and_looked_up():
        """Return whether the key that websockify had at the issue was certainly there still at the lookup."""
        begin = writes[0]
        token = result_of(store.issue(GRANT))
        found, looked_up = result_of(store.find(token)), plugin.lookup(token)
        passed = writes[0] - begin
        # A write is counted when it is done, so there may have been one more. The one after an even count is of `old`.
        if begin % 2 == 0 and passed <= 1:
            assert found is not None
        if begin % 2 == 0 and passed == 0:
            assert looked_up == (GRANT.host, GRANT.port)
            return True
        return False

    thread = threading.Thread(target=replace_on_and_on)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        good = 0
        while good < 100 or writes[0] < 40:
            good += issued_and_looked_up()
            assert time.monotonic() < deadline
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("spoil", "trouble"),
    [
        (lambda key: key.unlink(), "cannot be read (No such file or directory)"),
        (lambda key: written(key, ""), "is empty"),
        (lambda key: written(key, key.read_bytes() + b"\n"), "ends with a line break"),
    ],
)
def test_a_key_that_goes_bad_is_used_no_more_until_it_is_good_again(key, clock, spoil, trouble):
    store = JwtStore([str(key)], clock.seconds)
    good = key.read_bytes()
    token = result_of(store.issue(GRANT))
    spoil(key)
    with capturedLogs() as events:
        for asked in (store.issue(GRANT), store.find(token), store.use(token, 5)):
            with pytest.raises(TokenStoreError, match="VNC proxy token") as refused:
                result_of(asked)
            assert str(key) not in str(refused.value)
        assert result_of(store.find("garbage")) is None
    assert len(events) == 1
    assert (events[0]["path"], trouble in events[0]["trouble"]) == (str(key), True)
    assert good.decode() not in repr(events)
    written(key, good)
    with capturedLogs() as events:
        assert result_of(store.find(token)).grant == GRANT
        assert result_of(store.find(result_of(store.issue(GRANT)))).grant == GRANT
    assert [event["log_format"] for event in events] == ["JWT key file {path} can be used again"]


def test_an_old_key_that_goes_bad_takes_only_its_own_tokens_with_it(key, tmp_path, clock):
    old = written(tmp_path / "jwt.key.old", new_key())
    before = result_of(JwtStore([str(old)], clock.seconds).issue(GRANT))
    store = JwtStore([str(key), str(old)], clock.seconds)
    assert result_of(store.find(before)) is not None
    old.unlink()
    with capturedLogs() as events:
        assert result_of(store.find(result_of(store.issue(GRANT)))).grant == GRANT
        assert result_of(store.find(before)) is None
    assert len(events) == 1


# Real websockifys


def distribution_python():
    """Return the Python of a distribution that has websockify and jwcrypto, or skip the test."""
    program("/usr/bin/websockify")
    python = "/usr/bin/python3"
    if subprocess.run((python, "-c", "import jwcrypto, websockify"), capture_output=True, check=False).returncode:
        pytest.skip("the distribution's Python has no websockify or no jwcrypto")
    return python


@contextlib.contextmanager
def proxy(key, python=sys.executable):
    """Run websockify with its JWTTokenApi for a block's time. Yield the process, and what opens a console."""
    port = free_port()
    options = ("--token-plugin", "JWTTokenApi", "--token-source", key, "--verbose", f"127.0.0.1:{port}")
    with running(python, "-m", "vnctoken.proxy", *options, cwd=ROOT, ready="proxying from") as process:

        def console(token):
            connection = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
            return contextlib.closing(WebSocket.connect(connection, f"/websockify?token={token}"))

        yield process, console


@pytest.mark.parametrize("python", [lambda: sys.executable, distribution_python])
def test_a_token_opens_its_console_and_neither_tokens_nor_keys_are_logged(key, python):
    with screen() as vnc_port, proxy(key, python()) as (process, console):
        grant = Grant(vm_id=7, host="127.0.0.1", port=vnc_port, issued=0, ttl=600, user="alice")
        good = result_of(JwtStore([str(key)], time.time).issue(grant))
        expired = result_of(JwtStore([str(key)], lambda: time.time() - 601).issue(grant))
        early = result_of(JwtStore([str(key)], lambda: time.time() + 90).issue(grant))
        shortened = good[:-1]
        signed_only = signed(key, {**CLAIMS, "exp": 0})
        unknown_algorithm = good.replace(
            HEADER, base64.b64encode(b'{"alg":"dix","enc":"A256GCM"}').decode().rstrip("=")
        )
        garbage = [expired, early, shortened, signed_only, unknown_algorithm, good.replace(".", ""), "A" * 3000]

        with console(good) as opened:
            assert opened.receive_exactly(len(GREETING)) == GREETING
            opened.send(b"a key pressed")
            assert opened.receive_exactly(13) == b"a key pressed"
        for token in garbage:
            with pytest.raises(HandshakeRefusedError):
                console(token)

        for token in (good, *garbage):
            process.wait_for(rf"oken[ =']+{hashlib.sha256(token.encode()).hexdigest()[:8]}\b")
        process.wait_for("Token has expired|Expired at")
        for piece in (part for token in (good, *garbage) for part in token.split(".") if len(part) > 15):
            assert piece[:16] not in process.output
        assert key.read_text(encoding="ascii") not in process.output
        assert "Traceback" not in process.output


def test_a_console_on_ipv6_opens(key):
    if not ipv6_loopback():
        pytest.skip("this machine has no ::1")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener, proxy(key) as (_, console):
        listener.settimeout(START_SECONDS)
        grant = Grant(vm_id=7, host="::1", port=listener.getsockname()[1], issued=0, ttl=600)
        with console(result_of(JwtStore([str(key)], time.time).issue(grant))) as opened:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(GREETING)
                assert opened.receive_exactly(len(GREETING)) == GREETING


def test_keys_are_replaced_under_a_running_websockify(key, tmp_path):
    old = written(tmp_path / "jwt.key.old", key.read_bytes())
    store = JwtStore([str(key), str(old)], time.time)
    with screen() as vnc_port, proxy(key) as (_, console):
        grant = Grant(vm_id=7, host="127.0.0.1", port=vnc_port, issued=0, ttl=600)
        before = result_of(store.issue(grant))
        with console(before) as opened:
            assert opened.receive_exactly(len(GREETING)) == GREETING
            for _ in range(5):
                written(old, key.read_bytes())
                written(key, new_key())
                with console(result_of(store.issue(grant))) as another:
                    assert another.receive_exactly(len(GREETING)) == GREETING
            opened.send(b"still open")
            assert opened.receive_exactly(10) == b"still open"
        with pytest.raises(HandshakeRefusedError):
            console(before)
