"""What only Redis has: passwords, TLS, replicas, Sentinels, several front-ends, and many ways of not being there."""

from __future__ import annotations

import contextlib
import re
import signal
import socketserver
import threading
import time

import pytest
from conftest import free_port
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redisservers import (
    eventually,
    leftovers,
    nothing_left,
    redis_sentinel,
    redis_server,
    redis_store,
    waited,
)
from test_exchange import certificate
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHostnameResolver
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer

from vnctoken.errors import ErrorCode, TokenStoreError
from vnctoken.tls import client_tls
from vnctoken.tokens import Grant, digest
from vnctoken.tokens.redis import VMS_AT_ONCE

__all__ = ["nothing_left"]

HOST, PORT = "node-1.example.org", 5907
PASSWORD = "of-the-tests"
MASTER = "consoles"
SHORT = 0.6


@pytest.fixture(scope="module")
def running_redis():
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(running_redis):
    """Return a Redis with nothing in it, that several tests use."""
    running_redis.client.flushall()
    return running_redis


def grant_of(vm_id=7, host=HOST, port=PORT, ttl=600, **more):
    return Grant(vm_id, host, port, 1_700_000_000.25, ttl, **more)


def issue(store, grant=None):
    return waited(store.issue(grant or grant_of()))


def works(store):
    return waited(store.find(issue(store))) is not None


def trouble(work, begin="The tokens cannot be read or changed now. "):
    """Return what is wrong as the person who called reads it, and check that it is for his eyes."""
    with pytest.raises(TokenStoreError) as caught:
        waited(work)
    assert caught.value.code == ErrorCode.ALLOCATE == 0x4000
    message = str(caught.value)
    assert message.startswith(begin)
    for secret in (PASSWORD, "127.0.0.1", "localhost", HOST, "vnctoken:", "vnctoken."):
        assert secret not in message
    assert re.fullmatch(r"[^\n@]+[^.]", message)
    return message.removeprefix(begin)


def issue_trouble(store, grant=None):
    return trouble(store.issue(grant or grant_of()), "Cannot create VNC proxy token. ")


def connections(server):
    """Return how many clients a Redis has, but for the one that asks."""
    return len(server.client.client_list()) - 1


# What is in Redis


def test_websockify_s_key_is_there_for_as_long_as_the_token_and_no_other_can_be_read_as_one(redis):
    with redis_store(redis) as store:
        token = issue(store)
        issue(store, grant_of(single_use=True))
        assert redis.client.get(f"vnctoken:{token}") == f"{HOST}:{PORT}"
        assert 599_000 < redis.client.pttl(f"vnctoken:{token}") <= 600_000
        assert [key for key in redis.client.scan_iter() if redis.client.type(key) == "string"] == [f"vnctoken:{token}"]


def test_a_token_for_ever_has_no_expiry(redis):
    with redis_store(redis) as store:
        issue(store, grant_of(ttl=1))
        issue(store, grant_of(ttl=0))
        assert sum(redis.client.ttl(key) == -1 for key in redis.client.scan_iter()) == 5
        issue(store, grant_of(8, ttl=0))
        assert waited(store.revoke(7)) == 2
        assert waited(store.revoke(8)) == 1
    assert redis.client.keys() == []


def test_nothing_is_left_of_tokens_that_expired_whatever_was_revoked_meanwhile(redis):
    with redis_store(redis) as store:
        for vm_id in (7, 8):
            issue(store, grant_of(vm_id, ttl=1))
            issue(store, grant_of(vm_id, single_use=True, ttl=1))
            long = issue(store, grant_of(vm_id, ttl=vm_id % 2 * 600))
            assert waited(store.revoke(vm_id, frozenset({digest(long)}))) == 1
        assert redis.client.keys() != []
    time.sleep(1.05)
    assert redis.client.keys() == []


def test_indexes_do_not_grow_with_tokens_that_expired(redis):
    with redis_store(redis) as store:
        issue(store, grant_of(ttl=600))
        issue(store, grant_of(8, ttl=1))
        waited(*(store.issue(grant_of(7, ttl=1)) for _ in range(5)))
        time.sleep(1.05)
        issue(store, grant_of(9, ttl=600))
        assert redis.client.zrange("vnctoken.vms", 0, -1) == ["7", "9"]
        assert redis.client.zcard(f"vnctoken.target/{HOST}:{PORT}") == 2
        issue(store)
        assert redis.client.zcard("vnctoken.vm/7") == 2
    assert len(redis.client.keys()) == 3 * 2 + 2 + 1 + 1


def test_tokens_that_a_full_redis_evicted_are_gone_and_nobody_stumbles(redis):
    with redis_store(redis) as store:
        evicted, token = issue(store), issue(store)
        redis.client.delete(f"vnctoken.token/{digest(evicted)}")
        assert waited(store.find(evicted)) is None
        assert waited(store.holders(HOST, PORT)) == {7}
        assert [live.digest for live in waited(store.live(7))] == [digest(token)]
        assert waited(store.targets()) == {7: {(HOST, PORT)}}
        redis.client.delete(f"vnctoken.token/{digest(token)}")
        assert waited(store.revoke(7)) == 0
        assert waited(store.targets()) == {}
        assert waited(store.holders(HOST, PORT)) == frozenset()
        assert works(store)


def test_the_newest_tokens_are_kept_even_if_redis_clock_was_set_back(redis):
    with redis_store(redis, tokens_per_vm=2) as store:
        future = issue(store)
        redis.client.hset(f"vnctoken.token/{digest(future)}", "order", (int(time.time()) + 3600) * 10**6)
        tokens = [issue(store) for _ in range(2)]
        assert [live.digest for live in waited(store.live(7))] == [digest(token) for token in tokens]


def test_namespaces_and_databases_keep_apart(redis):
    with (
        redis_store(redis, namespace="a") as one,
        redis_store(redis, namespace="a.token") as other,
        redis_store(redis, namespace="a", db=3) as elsewhere,
    ):
        token = issue(one)
        for store in (other, elsewhere):
            assert waited(store.find(token)) is None
            assert waited(store.targets()) == {}
            assert waited(store.revoke(7)) == 0
        issue(elsewhere)
        assert redis.client.info("keyspace").keys() == {"db0", "db3"}
        assert waited(one.find(token)) is not None


def test_where_very_many_vms_lead_is_known(redis):
    with redis_store(redis) as store:
        expected = {vm_id: {(HOST, 5900 + vm_id)} for vm_id in range(2 * VMS_AT_ONCE + 1)}
        waited(*(store.issue(grant_of(vm_id, port=5900 + vm_id)) for vm_id in expected))
        assert waited(store.targets()) == expected


# Several front-ends


def test_what_one_front_end_issued_another_finds_uses_and_revokes(redis):
    with redis_store(redis) as one, redis_store(redis) as other:
        token = issue(one)
        used = waited(other.use(token, 5))
        assert waited(one.find(token)) == used
        assert waited(one.live(7)) == waited(other.live(7)) == [used]
        assert waited(other.revoke(7)) == 1
        assert waited(one.find(token)) is None


def test_a_single_use_token_is_used_once_whichever_front_ends_are_asked_at_the_same_time(redis):
    with redis_store(redis) as one, redis_store(redis) as other:
        for _ in range(20):
            token = issue(one, grant_of(single_use=True))
            uses = waited(*(store.use(token, 0) for store in (one, other, other, one)))
            assert sum(use is not None for use in uses) == 1


def test_front_ends_that_issue_at_the_same_time_keep_the_right_number_of_tokens(redis):
    with redis_store(redis, tokens_per_vm=3) as one, redis_store(redis, tokens_per_vm=3) as other:
        tokens = waited(*(store.issue(grant_of()) for _ in range(10) for store in (one, other)))
        live = {live.digest for live in waited(one.live(7))}
        assert len(live) == 3
        readable = {token for token in tokens if redis.client.exists(f"vnctoken:{token}")}
        assert {digest(token) for token in readable} == live
        assert waited(one.revoke(7), other.revoke(7)) in ([3, 0], [0, 3])
    assert redis.client.keys() == []


# Passwords and TLS


@pytest.fixture(scope="module")
def locked():
    with redis_server(password=PASSWORD) as server:
        yield server


def test_the_right_password_opens_redis(locked):
    with redis_store(locked, password=PASSWORD, db=1) as store:
        assert works(store)


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("wrong", "Redis does not accept the password of :redis_password_file:"),
        (None, "Redis wants a password (:redis_password_file:)"),
    ],
)
def test_a_wrong_or_missing_password_is_told_as_that(locked, password, message):
    with redis_store(locked, password=password) as store:
        assert issue_trouble(store) == message
        assert trouble(store.live(7)) == message


def test_a_password_for_a_redis_without_one_is_told_as_that(redis):
    with redis_store(redis, password=PASSWORD) as store:
        assert issue_trouble(store) == "Redis has no password, but :redis_password_file: is set"


def test_a_database_that_redis_does_not_have_is_told_as_that(redis):
    with redis_store(redis, db=999) as store:
        assert issue_trouble(store) == "Redis has no database with the number in :redis_db:"
    with canned(SELECT=b"-NOPERM no\r\n") as server, redis_store(server.server_address, db=1) as store:
        assert issue_trouble(store) == "Redis does not permit its user what a token store needs"


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """Make a CA, another one, and the certificate of a Redis that the first of them has issued."""
    folder = tmp_path_factory.mktemp("pems")
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "other-ca", "server")}
    for name in ("ca", "other-ca"):
        (folder / f"{name}.pem").write_bytes(certificate(f"{name} of the tests", keys[name]))
    private = keys["server"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    issuer = ("ca of the tests", keys["ca"])
    (folder / "redis.pem").write_bytes(
        certificate("redis", keys["server"], issuer=issuer, names=("localhost",)) + private
    )
    return folder


@pytest.fixture(scope="module")
def tls_redis(pems):
    with redis_server(tls=pems / "redis.pem", password=PASSWORD) as server:
        yield server


def verified_by(ca):
    return client_tls(str(ca), ":redis_ca:", ":redis_tls: is yes")


def test_tls_with_the_right_certificate_opens_redis(tls_redis, pems):
    with redis_store(("localhost", tls_redis.port), password=PASSWORD, tls=verified_by(pems / "ca.pem")) as store:
        assert works(store)


@pytest.mark.parametrize(
    ("host", "ca", "message"),
    [
        (
            "localhost",
            "other-ca.pem",
            "Redis' certificate is from no CA that is trusted (:redis_ca:), or not valid now",
        ),
        ("127.0.0.1", "ca.pem", "Redis' certificate is for another host"),
    ],
)
def test_a_redis_that_is_not_who_it_should_be_gets_no_password(tls_redis, pems, host, ca, message):
    before = tls_redis.client.info("stats")["total_commands_processed"]
    with redis_store((host, tls_redis.port), password=PASSWORD, tls=verified_by(pems / ca)) as store:
        assert issue_trouble(store) == message
    assert tls_redis.client.info("stats")["total_commands_processed"] == before + 1


def test_tls_on_one_side_only_is_told_as_a_trouble_with_the_connection(redis, tls_redis, pems):
    with redis_store(redis, tls=verified_by(pems / "ca.pem"), timeout=SHORT) as store:
        assert issue_trouble(store) == "Redis does not answer"
    with (
        canned(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server,
        redis_store(server.server_address, tls=verified_by(pems / "ca.pem")) as store,
    ):
        assert issue_trouble(store).startswith("TLS with Redis failed: ")
    with redis_store(tls_redis) as store:
        assert issue_trouble(store) == "Redis closed the connection"


# Redis that is not there, or not as it should be


def test_a_redis_that_is_down_is_found_when_it_comes_up(redis):
    port = free_port()
    with redis_store(("127.0.0.1", port)) as store:
        assert issue_trouble(store) == "Redis refuses connections: it is not running, or not where it is looked for"
        with redis_server(port=port):
            assert eventually(lambda: works(store), TokenStoreError)
        assert issue_trouble(store).startswith("Redis refuses connections")
        with redis_server(port=port):
            assert eventually(lambda: works(store), TokenStoreError)


def test_a_redis_that_restarts_between_two_calls_is_not_noticed():
    port = free_port()
    with redis_store(("127.0.0.1", port)) as store:
        for _ in range(3):
            with redis_server(port=port) as server:
                assert works(store)
                assert connections(server) == 1


def test_a_connection_that_redis_ended_is_made_again_at_once(redis):
    with redis_store(redis) as store:
        for _ in range(3):
            token = issue(store)
            redis.client.client_kill_filter(_type="normal", skipme=True)
            assert waited(store.find(token)) is not None
            redis.client.client_kill_filter(_type="normal", skipme=True)
            found = waited(*(store.find(token) for _ in range(50)))
            assert None not in found
            assert connections(redis) == 1


def test_no_call_hangs_on_a_redis_that_hangs(redis):
    with redis_store(redis, timeout=SHORT) as store:
        assert works(store)
        with redis.hanging():
            begun = time.monotonic()
            assert issue_trouble(store) == "Redis did not answer within 0.6 seconds"
            assert trouble(store.targets()) == "Redis does not answer"
            for work in (store.live(7), store.use("0" * 32, 5), store.revoke(7), store.holders(HOST, PORT)):
                assert trouble(work) == "Redis does not answer"
            assert time.monotonic() - begun < 3 * SHORT
        assert eventually(lambda: works(store), TokenStoreError)


def test_calls_that_wait_together_for_a_redis_that_hangs_all_end_in_time(redis):
    with redis_store(redis, timeout=SHORT) as store:
        assert works(store)
        with redis.hanging():
            ends = []

            async def ask():
                begun = time.monotonic()
                with contextlib.suppress(TokenStoreError):
                    await store.live(7)
                ends.append(time.monotonic() - begun)

            waited(*(ask() for _ in range(100)))
            assert len(ends) == 100
            assert max(ends) < SHORT + 0.4


@pytest.mark.parametrize("connected", [False, True])
def test_a_store_can_be_closed_while_calls_are_under_way(redis, connected):
    with redis_store(redis) as store:
        if connected:
            assert works(store)
        with redis.hanging():
            outcomes = []

            async def ask():
                with pytest.raises(TokenStoreError) as caught:
                    await store.issue(grant_of())
                outcomes.append(str(caught.value))

            waited(ask(), ask(), store.close())
            assert outcomes == ["Cannot create VNC proxy token. The service is stopping"] * 2
            assert leftovers() == []
            assert trouble(store.live(7)) == "The service is stopping"


def test_a_caller_who_goes_away_takes_nobody_else_s_answer_along(redis):
    with redis_store(redis) as store:
        token = issue(store)

        async def give_up():
            asked = Deferred.fromCoroutine(store.find(token))
            asked.cancel()
            with pytest.raises(CancelledError):
                await asked

        answers = waited(store.find(token), give_up(), store.find(token), store.find(token))
        assert [answer and answer.digest for answer in answers] == [digest(token), None, digest(token), digest(token)]


def test_a_redis_without_memory_takes_no_tokens_and_still_answers_for_those_it_has(redis):
    with redis_store(redis) as store:
        token = issue(store)
        before = set(redis.client.keys())
        redis.client.config_set("maxmemory", 1)
        try:
            assert issue_trouble(store) == "Redis is out of memory (its maxmemory)"
            assert issue_trouble(store, grant_of(8)) == "Redis is out of memory (its maxmemory)"
            assert set(redis.client.keys()) == before
            assert waited(store.find(token)) is not None
            assert waited(store.revoke(7)) == 1
        finally:
            redis.client.config_set("maxmemory", 0)
        assert works(store)


class CannedHandler(socketserver.StreamRequestHandler):
    """Reads commands and answers them as the test wants."""

    def handle(self):
        self.server.connections += 1
        self.wfile.write(self.server.answers.get("greeting", b""))
        with contextlib.suppress(OSError, ValueError):
            while head := self.rfile.readline():
                words = []
                for _ in range(int(head[1:])):
                    length = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(length + 2)[:-2].decode())
                answer = self.server.answers.get(words[0], b"")
                if answer == b"":
                    return
                self.wfile.write(answer)


@contextlib.contextmanager
def canned(**answers):
    """Run what gives the same answer to a command always, or ends the connection."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), CannedHandler) as server:
        server.daemon_threads = True
        server.connections = 0
        server.answers = {"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", **answers}
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


UNKNOWN = "Redis answered with an error that we do not know"
REPLICA = "Redis is a read-only replica"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("LOADING Redis is loading the dataset in memory", "Redis is still loading its data"),
        (
            "MISCONF Redis is configured to save RDB snapshots",
            "Redis takes no writes as it cannot save its data to disk",
        ),
        ("NOREPLICAS Not enough good replicas to write.", "Redis has too few replicas to take writes"),
        ("BUSY Redis is busy running a script.", "Redis is busy with a script"),
        (
            "NOPERM this user has no permissions to run 'eval'",
            "Redis does not permit its user what a token store needs",
        ),
        ("MASTERDOWN Link with MASTER is down", REPLICA),
        ("CROSSSLOT Keys in request", "Redis is a cluster, which cannot be used as a token store"),
        ("MOVED 3999 127.0.0.1:6381", "Redis is a cluster, which cannot be used as a token store"),
        # Redis 5 and 6.
        (
            "ERR Error running script (call to f_0): @user_script:9: @user_script: 9: -READONLY You can't write",
            REPLICA,
        ),
        ("ERR unknown command 'vnctoken:0123'", UNKNOWN),
        ("EXECABORT 127.0.0.1", UNKNOWN),
    ],
)
def test_what_redis_refuses_is_told_in_words_of_our_own(answer, message):
    with canned(EVAL=f"-{answer}\r\n".encode()) as server, redis_store(server.server_address) as store:
        assert issue_trouble(store) == message
        assert trouble(store.revoke(7)) == message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "Redis closed the connection"),
        (b"$5\r\nhello\r\n", "What answers at :redis_servers: does not speak Redis' protocol"),
        (b"+\xff\xfe\r\n", "What answers at :redis_servers: does not speak Redis' protocol"),
        (b"$x\r\n", "What answers at :redis_servers: does not speak Redis' protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Redis does not answer"),
        (b"*3\r\n$5\r\nslave\r\n$1\r\nm\r\n:1\r\n", REPLICA),
        (b"-LOADING wait\r\n", "Redis is still loading its data"),
    ],
)
def test_what_is_no_redis_that_takes_writes_is_told_as_that(answer, message):
    with canned(ROLE=answer) as server, redis_store(server.server_address, timeout=SHORT) as store:
        assert issue_trouble(store) == message


def test_redis_5_s_words_about_passwords_are_understood():
    for answer, message in (
        (b"-ERR invalid password\r\n", "Redis does not accept the password of :redis_password_file:"),
        (
            b"-ERR Client sent AUTH, but no password is set\r\n",
            "Redis has no password, but :redis_password_file: is set",
        ),
    ):
        with canned(AUTH=answer) as server, redis_store(server.server_address, password=PASSWORD) as store:
            assert issue_trouble(store) == message


@pytest.mark.parametrize("answers", [{"ROLE": b""}, {"EVAL": b"-LOADING wait\r\n"}, {"EVAL": b"-READONLY no\r\n"}])
def test_a_redis_in_trouble_is_not_stormed_with_connections(answers):
    with canned(**answers) as server, redis_store(server.server_address) as store:

        async def ask():
            with pytest.raises(TokenStoreError):
                await store.live(7)

        begun = time.monotonic()
        for _ in range(10):
            waited(*(ask() for _ in range(50)))
        searches = 1 + (time.monotonic() - begun) / 0.25
        assert 1 <= server.connections <= 2 * searches


@implementer(IHostnameResolver)
class Names:
    """Looks names up when it is told to, and then they have these addresses."""

    def __init__(self, *addresses):
        self._addresses = addresses
        self._receivers = []

    def resolveHostName(self, receiver, name, portNumber=0, addressTypes=None, transportSemantics="TCP"):
        receiver.resolutionBegan(self)
        self._receivers.append(receiver)
        return self

    def cancel(self):
        """Go on, as a look-up in a thread does."""

    async def answer(self):
        for receiver in self._receivers:
            for host, port in self._addresses:
                receiver.addressResolved(IPv4Address("TCP", host, port))
            receiver.resolutionComplete()


@contextlib.contextmanager
def looking_up(names):
    before = reactor.installNameResolver(names)
    try:
        yield
    finally:
        reactor.installNameResolver(before)


def test_a_name_without_an_address_is_told_as_that():
    names = Names()
    with looking_up(names), redis_store(("redis.example", 6379)) as store:

        async def ask():
            with pytest.raises(TokenStoreError, match=r"A host of :redis_servers: has no address$"):
                await store.live(7)

        waited(ask(), names.answer())


def test_a_name_that_is_found_too_late_leaves_no_connection(redis):
    names = Names(redis.address)
    with looking_up(names), redis_store(("redis.example", 6379), timeout=0.2) as store:
        assert issue_trouble(store) == "Redis does not answer"
        waited(names.answer())
        assert leftovers() == []
        assert connections(redis) == 0


def test_an_address_that_cannot_be_reached_is_told_as_that():
    # The kernel refuses by itself to connect to a broadcast address.
    with redis_store(("255.255.255.255", 6379)) as store:
        assert issue_trouble(store).startswith("Redis cannot be reached: ")


def test_neither_passwords_nor_tokens_are_logged_and_troubles_are_logged_once(locked):
    with capturedLogs() as events, redis_store(locked, password=PASSWORD) as good:
        token = issue(good)
        waited(good.use(token, 5))
        with redis_store(locked, password="wrong-" + PASSWORD) as bad:
            for _ in range(3):
                issue_trouble(bad)
                time.sleep(0.26)
    texts = [formatEvent(event) for event in events if event["log_namespace"].startswith("vnctoken.")]
    assert texts == [
        f"tokens are kept in Redis at 127.0.0.1 port {locked.port}",
        f"Redis at 127.0.0.1 port {locked.port}: Redis does not accept the password of :redis_password_file:",
    ]
    assert PASSWORD not in repr(events)
    assert token not in repr(events)


# Several servers


@contextlib.contextmanager
def a_pair(**settings):
    """Run a master and its replica."""
    with redis_server(**settings) as master, redis_server(**settings) as replica:
        replica.client.replicaof("127.0.0.1", master.port)
        assert eventually(lambda: replica.client.info("replication")["master_link_status"] == "up")
        yield master, replica


def promote(server):
    server.client.replicaof("NO", "ONE")


def test_the_first_of_several_servers_that_takes_writes_is_used():
    nobody = ("127.0.0.1", free_port())
    with a_pair() as (master, replica):
        with redis_store(nobody, replica, master) as store:
            token = issue(store)
            assert master.client.exists(f"vnctoken:{token}")
        with redis_store(nobody, replica) as store:
            message = issue_trouble(store)
        assert message == f"Redis refuses connections: it is not running, or not where it is looked for. {REPLICA}"


def test_after_a_failover_the_new_master_is_found_without_a_call_that_fails():
    with a_pair() as (one, other), redis_store(one, other) as store:
        token = issue(store)
        assert eventually(lambda: other.client.exists(f"vnctoken:{token}"))
        promote(other)
        # The connection to the old master is open still, and it refuses writes by then.
        one.client.replicaof("127.0.0.1", other.port)
        assert waited(store.revoke(7)) == 1
        assert not other.client.exists(f"vnctoken:{token}")
        one.process.process.send_signal(signal.SIGKILL)
        assert works(store)


def test_a_server_that_hangs_leaves_time_for_the_next(redis):
    with redis_server() as hung, redis_store(hung, redis, timeout=1.2) as store, hung.hanging():
        assert works(store)


# Sentinels


@pytest.fixture
def sentinel_of(tmp_path):
    def run(master, **settings):
        return redis_sentinel(tmp_path, master, name=MASTER, **settings)

    return run


def test_sentinel_fails_over_and_the_store_follows_without_a_restart(sentinel_of):
    with a_pair(password=PASSWORD) as (master, replica), sentinel_of(master, password=PASSWORD) as sentinel:
        assert eventually(lambda: sentinel.client.sentinel_slaves(MASTER))
        nobody = ("127.0.0.1", free_port())
        with redis_store(nobody, sentinel, sentinel=MASTER, password=PASSWORD) as store:
            token = issue(store)
            assert eventually(lambda: replica.client.exists(f"vnctoken:{token}"))
            with master.hanging():
                begun = time.monotonic()
                assert eventually(lambda: waited(store.find(token)), TokenStoreError) is not None
                assert time.monotonic() - begun < 20
                assert replica.client.exists(f"vnctoken:{token}")
                assert works(store)
            assert works(store)


def test_sentinels_that_cannot_help_are_told_as_that(redis, sentinel_of):
    with sentinel_of(redis, own_password=PASSWORD) as sentinel:
        with redis_store(sentinel, sentinel="another-name", password=PASSWORD) as store:
            assert issue_trouble(store) == "The Sentinels know no master with the name in :redis_sentinel:"
        with redis_store(sentinel, sentinel=MASTER) as store:
            assert issue_trouble(store) == "Redis wants a password (:redis_password_file:)"
        with redis_store(sentinel, sentinel=MASTER, password="wrong") as store:
            assert issue_trouble(store) == "Redis does not accept the password of :redis_password_file:"
    with redis_store(redis, sentinel=MASTER) as store:
        assert issue_trouble(store) == UNKNOWN


def test_sentinels_may_have_the_same_password(locked, sentinel_of):
    with (
        sentinel_of(locked, password=PASSWORD, own_password=PASSWORD) as sentinel,
        redis_store(sentinel, sentinel=MASTER, password=PASSWORD) as store,
    ):
        assert works(store)


def test_a_master_that_several_sentinels_name_is_tried_once():
    with canned(ROLE=b"") as master:
        port = str(master.server_address[1])
        address = f"*2\r\n$9\r\n127.0.0.1\r\n${len(port)}\r\n{port}\r\n".encode()
        with canned(SENTINEL=address) as one, canned(SENTINEL=address) as other, canned(SENTINEL=b"+OK\r\n") as odd:
            servers = [server.server_address for server in (one, other, odd)]
            with redis_store(*servers, sentinel=MASTER) as store:
                assert issue_trouble(store) == (
                    "Redis closed the connection. What answers at :redis_servers: does not speak Redis' protocol"
                )
        assert master.connections == 1
