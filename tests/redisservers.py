"""Real Redis servers and Sentinels for the time of a block, and what waits for a store that talks to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import pytest
import redis
from conftest import START_SECONDS, Running, free_port, program, running
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from vnctoken.tokens.redis import RedisStore

TIMEOUT = 2.0
"""The seconds that the stores of the tests give Redis."""

READY = "Ready to accept connections"


@pytest.fixture(autouse=True)
def nothing_left():
    """Check after a test that no timer runs and no socket is open in the real reactor."""
    yield
    assert leftovers() == []


def waited(*coroutines):
    """Run coroutines at the same time on the real reactor; return the result, or the list if there are several."""
    outcome = []

    def finish(result):
        outcome.append(result)
        reactor.crash()

    def start():
        running = [Deferred.fromCoroutine(coroutine) for coroutine in coroutines]
        gatherResults(running, consumeErrors=True).addErrback(lambda failure: failure.value.subFailure).addBoth(finish)

    reactor.callLater(0, start)
    reactor.run(installSignalHandlers=False)
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0][0] if len(coroutines) == 1 else outcome[0]


def leftovers():
    """Return the timers that run and the sockets that are open in the reactor."""
    own = ("_UnixWaker", "_SIGCHLDWaker")
    readers = [reader for reader in reactor.getReaders() if type(reader).__name__ not in own]
    return [*reactor.getDelayedCalls(), *readers, *reactor.getWriters()]


@dataclass
class RedisServer:
    """A Redis or a Sentinel that runs."""

    port: int
    process: Running
    client: redis.Redis

    @property
    def address(self):
        return ("127.0.0.1", self.port)

    @contextlib.contextmanager
    def hanging(self):
        """Let it hang for the time of a block: it accepts connections still, as the kernel does that for it."""
        os.kill(self.process.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def redis_server(*options, port=None, password=None, tls=None):
    """Run a Redis for the time of a block; `tls` is the path of its certificate and key, and then it is TLS alone."""
    port = port or free_port()
    place = ("--port", 0, "--tls-port", port) if tls else ("--port", port)
    if tls:
        place += ("--tls-cert-file", tls, "--tls-key-file", tls, "--tls-auth-clients", "no")
    args = ("--bind", "127.0.0.1", *place, "--save", "", "--dir", "/")
    # It looks for replicas and signals at once, instead of every now and then.
    args += ("--repl-diskless-sync-delay", 0, "--hz", 100)
    if password:
        args += ("--requirepass", password, "--masterauth", password)
    secure = {"ssl": True, "ssl_cert_reqs": "none"} if tls else {}
    with (
        running(program("redis-server"), *args, *options, ready=READY) as process,
        redis.Redis(port=port, password=password, decode_responses=True, **secure) as client,
    ):
        yield RedisServer(port, process, client)


@contextlib.contextmanager
def redis_sentinel(folder, master, *, name, password=None, own_password=None):
    """Run a Sentinel that watches a master, and makes another of its replicas the master in about two seconds."""
    port = free_port()
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor {name} 127.0.0.1 {master.port} 1",
        f"sentinel down-after-milliseconds {name} 300",
        f"sentinel failover-timeout {name} 2000",
        *([f"sentinel auth-pass {name} {password}"] if password else []),
        *([f"requirepass {own_password}"] if own_password else []),
    ]
    configuration = folder / f"sentinel-{port}.conf"
    configuration.write_text("\n".join(lines) + "\n", encoding="ascii")
    with (
        running(program("redis-sentinel"), configuration, ready=r"\+monitor master") as process,
        redis.Redis(port=port, password=own_password, decode_responses=True) as client,
    ):
        yield RedisServer(port, process, client)


@contextlib.contextmanager
def redis_store(*servers, namespace="vnctoken", **settings):
    """Make a store over running servers, or over their addresses, and close it again."""
    given = {
        "servers": [getattr(server, "address", server) for server in servers],
        "sentinel": None,
        "db": 0,
        "password": None,
        "tls": None,
        "timeout": TIMEOUT,
        "tokens_per_vm": 8,
    }
    store = RedisStore(reactor, namespace=namespace, **{**given, **settings})
    assert store.prepare() == []
    store.start()
    try:
        yield store
    finally:
        waited(store.close())


def eventually(attempt, error=()):
    """Return what `attempt` returns once it is true, and does not raise such an error."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(error):
            if outcome := attempt():
                return outcome
        time.sleep(0.05)
    return attempt()
