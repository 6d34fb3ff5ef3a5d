"""What every token store promises, and that websockify's plugins open what it issued and nothing else."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import sys
import time
import warnings
from pathlib import Path

import jwcrypto.jwt
import pytest
from conftest import START_SECONDS, free_port, running
from mounts import elsewhere, mount, nobody_in
from outcomes import result_of
from redisservers import nothing_left, redis_server, redis_store, waited
from twisted.internet.task import Clock
from websockify.token_plugins import JWTTokenApi, TokenFile, TokenRedis
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

from vnctoken.errors import ActionError, TokenStoreError
from vnctoken.tokens import Grant, digest, fingerprint
from vnctoken.tokens.folder import TokenFolder
from vnctoken.tokens.jwt import JwtStore

__all__ = ["nothing_left"]

KEPT = 3
HOST, PORT = "node-1.example.org", 5907


class Folder:
    """A token folder, whose clock is ours."""

    command = "websockify"

    def __init__(self, tmp_path):
        self._path = tmp_path / "tokens"
        self._clock = Clock()
        self._clock.advance(int(time.time()))

    @contextlib.contextmanager
    def store(self):
        """Make a store over this place, for the time of a block: again is a restart."""
        store = TokenFolder(self._path, self._clock, self._clock.seconds, ttl=600, tokens_per_vm=KEPT)
        store.prepare()
        store.start()
        try:
            yield store
        finally:
            waited(store.close())
            assert self._clock.getDelayedCalls() == []

    def now(self):
        return self._clock.seconds()

    def pass_time(self, seconds):
        self._clock.advance(seconds)

    @contextlib.contextmanager
    def in_trouble(self):
        """Have no token written here for the time of a block, and return what is told of it."""
        aside = self._path.with_name("elsewhere")
        self._path.rename(aside)
        yield "No such file or directory"
        aside.rename(self._path)

    def content(self):
        """Return all that is here."""
        return {file: file.read_bytes() for file in self._path.parent.rglob("*") if file.is_file()}

    @property
    def plugin(self):
        return ("TokenFile", self._path)

    def lookup(self, token):
        """Ask websockify's plugin for a token."""
        with warnings.catch_warnings():
            # It leaves closing the files to CPython.
            warnings.simplefilter("ignore", ResourceWarning)
            return TokenFile(str(self._path)).lookup(token)


class Redis:
    """A namespace in a real Redis."""

    command = "websockify"

    def __init__(self, server):
        self._server = server
        self._namespace = f"test-{secrets.token_hex(4)}"

    def store(self):
        return redis_store(self._server, namespace=self._namespace, tokens_per_vm=KEPT)

    def now(self):
        return time.time()

    def pass_time(self, seconds):
        time.sleep(seconds)

    @contextlib.contextmanager
    def in_trouble(self):
        self._server.client.config_set("maxmemory", 1)
        try:
            yield "Redis is out of memory (its maxmemory)"
        finally:
            self._server.client.config_set("maxmemory", 0)

    def content(self):
        return {key: self._server.client.dump(key) for key in self.keys}

    @property
    def plugin(self):
        return "TokenRedis", f"127.0.0.1:{self._server.port}:0::{self._namespace}"

    def lookup(self, token):
        return TokenRedis(self.plugin[1]).lookup(token)

    @property
    def keys(self):
        return self._server.client.keys(f"{self._namespace}*")


class Jwt:
    """A key file. `vnctoken-websockify` is the websockify that reads encrypted tokens."""

    command = "vnctoken.proxy"

    def __init__(self, tmp_path):
        self._path = tmp_path / "jwt.key"
        self._path.write_bytes(base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"="))

    @contextlib.contextmanager
    def store(self):
        store = JwtStore([str(self._path)], time.time)
        store.prepare()
        store.start()
        yield store
        waited(store.close())

    def now(self):
        return time.time()

    def pass_time(self, seconds):
        time.sleep(seconds)

    @contextlib.contextmanager
    def in_trouble(self):
        aside = self._path.with_name("elsewhere")
        self._path.rename(aside)
        yield "The key for it cannot be read"
        aside.rename(self._path)

    def content(self):
        return {self._path: self._path.read_bytes()}

    @property
    def plugin(self):
        return ("JWTTokenApi", self._path)

    def lookup(self, token):
        return JWTTokenApi(str(self._path)).lookup(token)


@pytest.fixture(scope="module")
def redis():
    with redis_server() as server:
        yield server


@pytest.fixture(params=["folder", "redis", "jwt"])
def place(request, tmp_path, monkeypatch):
    """Return where tokens are kept, and how websockify looks them up."""
    # What jwcrypto asks a program to set that reads encrypted tokens with one symmetric key.
    monkeypatch.setattr(jwcrypto.jwt, "JWT_expect_type", False)
    match request.param:
        case "folder":
            return Folder(tmp_path)
        case "redis":
            return Redis(request.getfixturevalue("redis"))
    return Jwt(tmp_path)


revocable = pytest.mark.parametrize("place", ["folder", "redis"], indirect=True)


def grant_of(place, vm_id=7, host=HOST, port=PORT, ttl=600, **more):
    return Grant(vm_id, host, port, place.now(), ttl, **more)


def target(found):
    """Return a plugin's answer as a host and a port."""
    return None if found is None else (found[0], int(found[1]))


def issue(store, grant):
    return waited(store.issue(grant))


def digests(tokens):
    return [digest(token) for token in tokens]


def live_digests(store, vm_id=7):
    return [live.digest for live in waited(store.live(vm_id))]


# Whether it can be used


def test_a_store_that_can_be_used_says_so_and_nothing_is_left_of_the_check(place):
    with place.store() as store:
        waited(store.check())
        issue(store, grant_of(place))
        before = place.content()
        waited(store.check())
        assert place.content() == before


def test_a_store_that_takes_no_tokens_says_why_until_it_does_again(place):
    with place.store() as store:
        with place.in_trouble() as reason:
            for work in (store.check(), store.issue(grant_of(place))):
                with pytest.raises(TokenStoreError) as caught:
                    waited(work)
                assert reason in str(caught.value)
                assert "/" not in str(caught.value)
                assert str(place.plugin[1]) not in str(caught.value)
        waited(store.check())
        assert target(place.lookup(issue(store, grant_of(place)))) == (HOST, PORT)


def checked(path):
    """Return what a check of a token folder says is wrong."""
    store = TokenFolder(path, Clock(), time.time, ttl=600, tokens_per_vm=KEPT)
    with pytest.raises(TokenStoreError) as caught:
        result_of(store.check())
    return str(caught.value)


def filling_disk(place):
    mount(place, "-t", "tmpfs", "-o", "size=64k", "none")
    with Folder(place).store() as store:
        result_of(store.check())
        with pytest.raises(OSError, match="No space left"):
            (place / "filler").write_bytes(bytes(2**20))
        assert checked(place / "tokens") == "No token can be written now. No space left on device"
        assert list((place / "tokens.new").iterdir()) == []
        (place / "filler").unlink()
        result_of(store.check())


def read_only_disk(place):
    mount(place, "-t", "tmpfs", "none")
    with Folder(place).store() as store:
        mount(place, "-o", "remount,bind,ro")
        assert checked(place / "tokens") == "No token can be written now. Read-only file system"
        mount(place, "-o", "remount,bind,rw")
        result_of(store.check())


def mount_of_its_own(place):
    with Folder(place).store():
        mount(place / "tokens", "-t", "tmpfs", "none")
        assert checked(place / "tokens") == "No token can be written now. Invalid cross-device link"


@pytest.mark.parametrize("trouble", [filling_disk, read_only_disk, mount_of_its_own])
def test_a_token_folder_on_a_disk_that_takes_no_files_is_noticed(tmp_path, trouble):
    elsewhere(trouble, tmp_path)


@pytest.mark.parametrize("folder", ["tokens", "tokens.new"])
def test_a_token_folder_that_went_or_that_the_user_may_not_write_to_is_noticed(tmp_path, folder):
    with nobody_in(tmp_path), Folder(Path()).store() as store:
        result_of(store.check())
        Path(folder).chmod(0o500)
        assert checked(Path("tokens")) == "No token can be written now. Permission denied"
        Path(folder).rmdir()
        assert checked(Path("tokens")) == "No token can be written now. No such file or directory"
        Path(folder).write_text("something else")
        assert checked(Path("tokens")) == "No token can be written now. Not a directory"


def test_a_redis_that_became_a_replica_takes_no_tokens():
    with (
        redis_server() as master,
        redis_server() as server,
        redis_store(server) as store,
    ):
        waited(store.check())
        server.client.replicaof("127.0.0.1", master.port)
        with pytest.raises(TokenStoreError, match=r"^No token can be written now\. Redis is a read-only replica$"):
            waited(store.check())


def test_a_redis_that_hangs_is_not_waited_for_for_long(redis):
    with redis_store(redis, timeout=0.3) as store:
        waited(store.check())
        with redis.hanging(), pytest.raises(TokenStoreError, match="did not answer within"):
            waited(store.check())
        waited(store.check())


# Looking up


def test_a_token_opens_its_console_and_nothing_else_opens_any(place):
    with place.store() as store:
        token, other = (issue(store, grant_of(place, vm_id, port=5900 + vm_id)) for vm_id in (7, 8))
        assert target(place.lookup(token)) == (HOST, 5907)
        assert target(place.lookup(other)) == (HOST, 5908)
        for wrong in ("0" * 32, token[:-1], token + "0", digest(token), fingerprint(token), "one-7", "vm/7", "vms"):
            assert place.lookup(wrong) is None, wrong
            assert waited(store.find(wrong)) is None, wrong
            assert waited(store.use(wrong, 5)) is None, wrong


@pytest.mark.parametrize("user", ["", "alice", "007", "1e3", 'o\'hara "x" {"a": 1}', "Jörg 北京", " ", "a" * 250])
def test_a_token_is_found_with_all_that_it_was_granted_for(place, user):
    with place.store() as store:
        grant = grant_of(place, vm_id=2**31 - 1, ttl=77, user=user)
        token = issue(store, grant)
        found = waited(store.find(token))
        assert found.digest == digest(token)
        assert found.used == 0
        assert found.grant.issued == pytest.approx(grant.issued, abs=2)
        assert found.grant == Grant(grant.vm_id, HOST, PORT, found.grant.issued, 77, user)


def test_no_two_tokens_are_alike(place):
    with place.store() as store:
        assert len({issue(store, grant_of(place)) for _ in range(5)}) == 5


def test_several_viewers_have_a_vm_s_console_side_by_side(place):
    with place.store() as store:
        first, second = issue(store, grant_of(place)), issue(store, grant_of(place))
        assert target(place.lookup(first)) == target(place.lookup(second)) == (HOST, PORT)


def test_tokens_that_are_issued_at_the_same_time_are_all_good(place):
    with place.store() as store:
        tokens = waited(*(store.issue(grant_of(place, vm_id, port=5900 + vm_id)) for vm_id in range(20)))
        assert [target(place.lookup(token)) for token in tokens] == [(HOST, 5900 + vm_id) for vm_id in range(20)]


def test_tokens_outlive_a_restart(place):
    with place.store() as store:
        tokens = [issue(store, grant_of(place, user="alice", ttl=ttl)) for ttl in (100, 300)]
        before = [waited(store.find(token)) for token in tokens]
    with place.store() as store:
        assert [waited(store.find(token)) for token in tokens] == before
        assert [target(place.lookup(token)) for token in tokens] == [(HOST, PORT)] * 2


@revocable
def test_what_is_known_of_tokens_outlives_a_restart(place):
    with place.store() as store:
        tokens = [issue(store, grant_of(place)) for _ in range(2)]
        restricted = issue(store, grant_of(place, single_use=True, client="203.0.113.9"))
        used = waited(store.use(restricted, 5))
        before = waited(store.live(7))
        assert used == before[-1]
    with place.store() as store:
        assert waited(store.live(7)) == before
        assert waited(store.holders(HOST, PORT)) == {7}
        assert waited(store.targets()) == {7: {(HOST, PORT)}}
        place.pass_time(0.05)
        assert waited(store.use(restricted, 0.01)) is None
        assert place.lookup(restricted) is None
        assert waited(store.revoke(7)) == 3
        assert [place.lookup(token) for token in tokens] == [None, None]


def test_an_ipv6_address_is_carried_or_refused_clearly(place):
    address = "2001:db8::1"
    with place.store() as store:
        if isinstance(place, Redis):
            with pytest.raises(ActionError, match=rf"'{address}'.*TokenRedis.*by a name in OpenNebula"):
                issue(store, grant_of(place, host=address))
            assert place.keys == []
        else:
            token = issue(store, grant_of(place, host=address))
            assert target(place.lookup(token)) == (address, PORT)
            assert waited(store.find(token)).grant.host == address


# Lives that end


def test_an_expired_token_opens_nothing(place):
    with place.store() as store:
        short = issue(store, grant_of(place, ttl=1))
        long = issue(store, grant_of(place, ttl=60))
        place.pass_time(0.3)
        assert target(place.lookup(short)) == (HOST, PORT)
        assert waited(store.find(short)) is not None
        place.pass_time(0.9)
        assert place.lookup(short) is None
        assert waited(store.find(short)) is None
        assert waited(store.use(short, 5)) is None
        assert target(place.lookup(long)) == (HOST, PORT)


@revocable
def test_an_expired_token_is_in_no_list(place):
    with place.store() as store:
        tokens = [issue(store, grant_of(place, ttl=ttl)) for ttl in (1, 60)]
        issue(store, grant_of(place, 8, port=5908, ttl=1))
        assert waited(store.targets()) == {7: {(HOST, PORT)}, 8: {(HOST, 5908)}}
        place.pass_time(1.1)
        assert live_digests(store) == [digest(tokens[1])]
        assert waited(store.live(8)) == []
        assert waited(store.holders(HOST, 5908)) == frozenset()
        assert waited(store.targets()) == {7: {(HOST, PORT)}}
        assert waited(store.revoke(8)) == 0
        assert waited(store.revoke(7)) == 1


@revocable
def test_a_token_for_ever_does_not_expire(place):
    with place.store() as store:
        token = issue(store, grant_of(place, ttl=0))
        issue(store, grant_of(place, ttl=1))
        place.pass_time(1.1)
        assert target(place.lookup(token)) == (HOST, PORT)
        assert live_digests(store) == [digest(token)]
        assert waited(store.find(token)).grant.expires == 0
        assert waited(store.targets()) == {7: {(HOST, PORT)}}
        assert waited(store.holders(HOST, PORT)) == {7}


@revocable
def test_only_the_newest_tokens_of_a_vm_are_kept(place):
    with place.store() as store:
        other = issue(store, grant_of(place, 8))
        tokens = [issue(store, grant_of(place)) for _ in range(KEPT + 2)]
        assert [target(place.lookup(token)) for token in tokens] == [None] * 2 + [(HOST, PORT)] * KEPT
        assert live_digests(store) == digests(tokens[2:])
        assert waited(store.find(tokens[0])) is None
        assert target(place.lookup(other)) == (HOST, PORT)


@revocable
def test_a_vm_that_moved_has_tokens_to_both_places_until_they_are_revoked(place):
    with place.store() as store:
        before = issue(store, grant_of(place, host="node-1"))
        after = issue(store, grant_of(place, host="node-2"))
        assert waited(store.targets()) == {7: {("node-1", PORT), ("node-2", PORT)}}
        assert waited(store.revoke(7, frozenset({digest(before)}))) == 1
        assert waited(store.targets()) == {7: {("node-2", PORT)}}
        assert waited(store.holders("node-1", PORT)) == frozenset()
        assert waited(store.holders("node-2", PORT)) == {7}
        assert (place.lookup(before), target(place.lookup(after))) == (None, ("node-2", PORT))


# Taking back


@revocable
def test_all_tokens_of_a_vm_are_revoked_and_no_others(place):
    with place.store() as store:
        assert store.revocable
        tokens = [issue(store, grant_of(place)) for _ in range(2)]
        restricted = issue(store, grant_of(place, single_use=True))
        other = issue(store, grant_of(place, 8))
        assert waited(store.revoke(7)) == 3
        for token in (*tokens, restricted):
            assert place.lookup(token) is None
            assert waited(store.find(token)) is None
            assert waited(store.use(token, 5)) is None
        assert waited(store.live(7)) == []
        assert waited(store.revoke(7)) == 0
        assert target(place.lookup(other)) == (HOST, PORT)
        assert waited(store.holders(HOST, PORT)) == {8}
        assert waited(store.targets()) == {8: {(HOST, PORT)}}


@revocable
def test_one_token_of_a_vm_is_revoked_by_its_digest(place):
    with place.store() as store:
        tokens = [issue(store, grant_of(place)) for _ in range(3)]
        other = issue(store, grant_of(place, 8))
        assert waited(store.revoke(7, frozenset())) == 0
        assert waited(store.revoke(7, frozenset({digest(other), digest("nobody's")}))) == 0
        assert waited(store.revoke(7, frozenset({digest(tokens[1]), digest("nobody's")}))) == 1
        assert live_digests(store) == digests([tokens[0], tokens[2]])
        assert [target(place.lookup(token)) for token in tokens] == [(HOST, PORT), None, (HOST, PORT)]
        assert target(place.lookup(other)) == (HOST, PORT)


@revocable
def test_whose_tokens_lead_to_a_place_is_known(place):
    with place.store() as store:
        for vm_id in (0, 7, 7, 12):
            issue(store, grant_of(place, vm_id))
        issue(store, grant_of(place, 12, port=5912))
        assert waited(store.holders(HOST, PORT)) == {0, 7, 12}
        assert waited(store.holders(HOST, 5912)) == {12}
        assert waited(store.holders(HOST, 5999)) == waited(store.holders("elsewhere", PORT)) == frozenset()
        assert waited(store.targets()) == {0: {(HOST, PORT)}, 7: {(HOST, PORT)}, 12: {(HOST, PORT), (HOST, 5912)}}


# What only the resolver can keep


@revocable
@pytest.mark.parametrize("limits", [{"single_use": True}, {"client": "203.0.113.9"}])
@pytest.mark.parametrize("host", [HOST, "2001:db8::1"])
def test_what_reads_the_store_by_itself_does_not_find_a_restricted_token(place, limits, host):
    with place.store() as store:
        grant = grant_of(place, host=host, user="alice", **limits)
        token = issue(store, grant)
        for guess in (token, digest(token), f"token/{digest(token)}"):
            assert place.lookup(guess) is None
        found = waited(store.find(token))
        assert found.grant == Grant(7, host, PORT, found.grant.issued, 600, "alice", **limits)
        assert waited(store.use(token, 5)).grant == found.grant
        assert place.lookup(token) is None
        assert live_digests(store) == [digest(token)]
        assert waited(store.holders(host, PORT)) == {7}


@revocable
def test_the_first_use_of_a_token_is_noted(place):
    with place.store() as store:
        token = issue(store, grant_of(place))
        assert waited(store.find(token)).used == 0
        before = place.now()
        first = waited(store.use(token, 5))
        assert before - 0.001 <= first.used <= place.now()
        place.pass_time(0.05)
        for _ in range(3):
            assert waited(store.use(token, 0.01)) == first
        assert waited(store.find(token)) == first
        assert waited(store.live(7)) == [first]
        assert target(place.lookup(token)) == (HOST, PORT)


@revocable
def test_a_token_for_a_single_use_is_good_again_for_a_moment_only(place):
    with place.store() as store:
        token = issue(store, grant_of(place, single_use=True))
        first = waited(store.use(token, 0.3))
        assert first.used
        place.pass_time(0.05)
        assert waited(store.use(token, 0.3)) == first
        place.pass_time(0.3)
        assert waited(store.use(token, 0.3)) is None
        assert waited(store.use(token, 0)) is None


@revocable
def test_of_two_uses_at_the_same_time_one_is_the_first(place):
    with place.store() as store:
        token = issue(store, grant_of(place, single_use=True))
        uses = waited(*(store.use(token, 5) for _ in range(5)))
        assert len(set(uses)) == 1
        assert uses[0] == waited(store.find(token))


# A store that keeps nothing


@pytest.mark.parametrize("place", ["jwt"], indirect=True)
@pytest.mark.parametrize("limits", [{"single_use": True}, {"client": "203.0.113.9"}, {"ttl": 0}])
def test_a_store_that_cannot_keep_a_promise_does_not_make_it(place, limits):
    with place.store() as store, pytest.raises(ActionError, match=":token_store:"):
        issue(store, grant_of(place, **limits))


@pytest.mark.parametrize("place", ["jwt"], indirect=True)
def test_a_store_that_knows_no_tokens_says_so(place):
    with place.store() as store:
        assert not store.revocable
        token = issue(store, grant_of(place))
        for refused in (store.live(7), store.revoke(7), store.revoke(7, frozenset({digest(token)}))):
            with pytest.raises(ActionError, match=":token_store:"):
                waited(refused)
        assert waited(store.holders(HOST, PORT)) == frozenset()
        assert waited(store.targets()) == {}
        assert target(place.lookup(token)) == (HOST, PORT)


# Through websockify


def test_a_token_opens_its_console_through_websockify_and_nothing_else_does(place):
    plugin, source = place.plugin
    port = free_port()
    options = ("--token-plugin", plugin, "--token-source", source, f"127.0.0.1:{port}")
    with contextlib.ExitStack() as stack:
        vnc_port = stack.enter_context(screen())
        store = stack.enter_context(place.store())
        stack.enter_context(running(sys.executable, "-m", place.command, *options, ready="proxying from"))

        def viewer(token):
            connection = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
            return contextlib.closing(WebSocket.connect(connection, f"/websockify?token={token}"))

        token = issue(store, grant_of(place, host="127.0.0.1", port=vnc_port))
        with viewer(token) as opened:
            assert opened.receive_exactly(len(GREETING)) == GREETING
            opened.send(b"a key pressed")
            assert opened.receive_exactly(13) == b"a key pressed"
        for wrong in ("", "0" * 32, token[:-1], digest(token)):
            with pytest.raises(HandshakeRefusedError):
                viewer(wrong)
        if store.revocable:
            waited(store.revoke(7))
            with pytest.raises(HandshakeRefusedError):
                viewer(token)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
