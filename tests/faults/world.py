"""A small cloud on loopback, with all that is ours in it, under load; and what came of the load so far."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conftest import free_port, program
from redisservers import redis_sentinel, redis_server

from faults.judging import HOMES, HOST
from faults.load import Outcome
from faults.programs import Program, python, started
from faults.screens import screens
from faults.watching import Watcher

if TYPE_CHECKING:
    from pathlib import Path

ONED_TIMEOUT = 7
"""The service's :one_xmlrpc_timeout:, in seconds; less than its default, so that a hung oned is noticed in the run."""

MASTER = "console-tokens"
PAUSE = 0.15
"""The seconds between two calls of a client."""

KEPT = 60
"""For how long an earlier token is expected to be there, in seconds; it lives longer than that."""

RUN_BY_SYSTEMD = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3);"
    " os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Hands a listening socket over as systemd does (sd_listen_fds(3))."""

_LIMITS = "".join(
    f":{key}: none\n"
    for key in (
        *("calls_per_user", "calls_per_vm", "calls_per_client", "calls_total"),
        *("tokens_per_user", "tokens_per_client", "tokens_total", "monitor_listen"),
    )
)


class Load:
    """The process that makes the load, and what it has told."""

    def __init__(self, settings, log):
        self._outcomes = []
        self._changed = threading.Condition()
        with log.open("a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                python("faults.load", json.dumps(settings)),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self._outcomes.append(Outcome(*json.loads(line)))
                self._changed.notify_all()

    def outcomes(self, since=0.0):
        """Return what came of the calls that ended after a time."""
        with self._changed:
            return [outcome for outcome in self._outcomes if outcome.ended >= since]

    def forget(self, before):
        """Forget what ended before a time: a run of days is no reason to grow."""
        with self._changed:
            self._outcomes = [outcome for outcome in self._outcomes if outcome.ended >= before]

    def wait(self, condition, seconds):
        """Wait until `condition` is not None of the outcomes so far, or so many seconds; return it, or None."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self._outcomes) is not None, timeout=seconds)
            return condition(self._outcomes)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@dataclass
class RedisPair:
    """A Redis, its replica, and the Sentinel that watches them."""

    master: object
    replica: object
    sentinel: object

    def promoted(self):
        """Whether the replica is the master now."""
        return int(self.sentinel.client.sentinel_get_master_addr_by_name(MASTER)[1]) == self.replica.port


@dataclass
class World:
    """What runs."""

    folder: Path
    oned: Program
    service: Program
    load: Load | None
    port: int
    oned_port: int
    redis: RedisPair | None = None
    watcher: Watcher | None = None

    @property
    def url(self):
        return f"http://{HOST}:{self.port}/RPC2"

    @property
    def oned_url(self):
        return f"http://{HOST}:{self.oned_port}/RPC2"

    @property
    def var(self):
        return self.folder / "one" / "var"

    @property
    def tokens(self):
        return self.var / "sunstone_vnc_tokens"


@contextlib.contextmanager
def world(  # noqa: PLR0913 (what differs between the rows of the table)
    folder,
    *,
    redis=False,
    environment=(),
    listening=None,
    settings="",
    homes=HOMES,
    events=False,
    kept=KEPT,
    server="vnctoken.server",
):
    """Run everything for the time of a block.

    `listening` is a socket that is handed over to the service, and `server` the module that is run as it.
    """
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(screens(homes))
        pair = stack.enter_context(_redis(folder)) if redis else None
        publisher = f"{HOST}:{free_port()}" if events else None
        oned_port = free_port()
        oned = stack.enter_context(started(_oned(folder, oned_port, ports, publisher, environment)))
        port = listening.getsockname()[1] if listening else free_port()
        resolver = f"{HOST}:{free_port()}"
        settings += f":port: {port}\n:one_xmlrpc: http://{HOST}:{oned_port}/RPC2\n:resolver_listen: {resolver}\n"
        settings += f":subscriber_endpoint: tcp://{publisher}\n" if events else ":subscriber_endpoint:\n"
        if pair:
            settings += f":token_store: redis\n:redis_servers: [{HOST}:{pair.sentinel.port}]\n"
            settings += f":redis_sentinel: {MASTER}\n"
        service = stack.enter_context(started(_service(folder, settings, environment, listening, server)))
        made = World(folder, oned, service, None, port, oned_port, pair)
        websockify = stack.enter_context(_websockify(made, resolver if redis else None))
        if not redis:
            made.watcher = Watcher(made.tokens)
            made.watcher.start()
            stack.callback(made.watcher.stop)
        made.load = Load(
            {
                "url": made.url,
                "screens": ports,
                "websockify": websockify,
                "pause": PAUSE,
                "kept": kept,
                "store": {"sentinel": pair.sentinel.port, "name": MASTER} if pair else {"folder": str(made.tokens)},
            },
            folder / "load.log",
        )
        stack.callback(made.load.stop)
        yield made


def _oned(folder, port, ports, events, environment):
    arguments = [f"{HOST}:{port}", json.dumps(ports), *([events] if events else [])]
    return Program(python("faults.oned", *arguments), folder / "oned.log", ready="listens on", environment=environment)


def _service(folder, settings, environment, listening, server):
    one = folder / "one"
    for path in (one / "etc", one / "var" / ".one"):
        path.mkdir(parents=True, exist_ok=True)
    login = one / "var" / ".one" / "vnctoken_auth"
    login.write_text("serveradmin:serveradmin-secret-for-tests\n", encoding="ascii")
    login.chmod(0o600)
    common = f":one_xmlrpc_timeout: {ONED_TIMEOUT}\n:auth_failures: 100000/s\n:recheck_interval: 2\n"
    # Not into the folder that gets full.
    common += f":log:\n  :system: syslog\n{_LIMITS}"
    (one / "etc" / "vnctoken-server.conf").write_text(common + settings, encoding="utf-8")
    command, descriptors = python(server), ()
    if listening is not None:
        descriptors = (listening.fileno(),)
        command = [sys.executable, "-c", RUN_BY_SYSTEMD, listening.fileno(), *command]
    environment = {**dict(environment), "ONE_LOCATION": str(one)}
    return Program(command, folder / "service.log", ready="listens on", environment=environment, pass_fds=descriptors)


@contextlib.contextmanager
def _websockify(made, resolver):
    port = free_port()
    source = ("TokenFile", made.tokens) if resolver is None else ("JSONTokenApi", f"http://{resolver}/token/%s")
    command = python("vnctoken.proxy", "--token-plugin", source[0], "--token-source", source[1], f"{HOST}:{port}")
    with started(Program(command, made.folder / "websockify.log", ready="proxying from|Listen on")):
        yield f"ws://{HOST}:{port}/websockify"


@contextlib.contextmanager
def _redis(folder):
    program("redis-sentinel")
    with redis_server() as master, redis_server("--replicaof", HOST, master.port) as replica:
        deadline = time.monotonic() + 10
        while master.client.info("replication")["connected_slaves"] < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        with redis_sentinel(folder, master, name=MASTER) as sentinel:
            while sentinel.client.sentinel_master(MASTER)["num-slaves"] < 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            yield RedisPair(master, replica, sentinel)
