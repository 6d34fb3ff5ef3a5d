"""The faults: what is done to a world for some seconds, and what that may do to calls."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from faults.judging import HOST
from faults.programs import Program, python, started
from faults.tally import Allowed
from faults.vitals import descriptors
from faults.world import ONED_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

ONED, STORE, FULL = "0x2000", "0x4000", "HTTP 503"
KILL_SECONDS = 3.0
HOUR = 3600
LORISES, HOSTILE, HOLDERS = 1000, 4, 200
REQUEST_SECONDS = 10
"""How long the service lets a request take."""


NOTHING = Allowed()


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    `inject(world, seconds)` does it, and ends it; what it returns are notes. `small` are the folders that have a
    filesystem of their own; `stage(folder)` returns more for `world`, or is a context of it; `check(world)` returns
    what is wrong afterwards; `lacking` returns what the machine has not.
    """

    name: str
    inject: Callable
    allowed: Allowed = NOTHING
    small: tuple[str, ...] = ()
    redis: bool = False
    stage: Callable = lambda folder: contextlib.nullcontext({})
    check: Callable = lambda world: []
    lacking: Callable = lambda: None


# oned.


def _oned_killed(world, seconds):
    world.oned.kill()
    time.sleep(seconds)
    world.oned.start()
    return []


def _oned_hung(world, seconds):
    world.oned.signal(signal.SIGSTOP)
    try:
        time.sleep(max(seconds, ONED_TIMEOUT + 3))
    finally:
        world.oned.signal(signal.SIGCONT)
    return []


def _oned_moody(order, back, world, seconds):
    world.oned.order(order)
    time.sleep(seconds)
    world.oned.order(back)
    return []


# The token store.


def _redis_fails_over(world, _seconds):
    world.redis.master.process.process.kill()
    deadline = time.monotonic() + 30
    while not world.redis.promoted():
        if time.monotonic() > deadline:
            raise RuntimeError("the Sentinel has promoted nobody")
        time.sleep(0.02)
    return []


def _full(where, world, seconds):
    """Let nothing be left of a filesystem, and take what gets free meanwhile."""
    filler = where(world) / "filler"
    deadline = time.monotonic() + seconds
    try:
        with filler.open("ab", buffering=0) as file:
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                time.sleep(0.01)
    finally:
        filler.unlink()
    return []


def _remount(place, how):
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True, capture_output=True)


def _read_only(world, seconds):
    while True:
        try:
            _remount(world.var, "ro")
            break
        except subprocess.CalledProcessError:
            # A token is being written just now.
            if world.service.process.poll() is not None:
                raise
    time.sleep(seconds)
    _remount(world.var, "rw")
    return []


# The machine.


@contextlib.contextmanager
def _clock(folder):
    offset = folder / "clock"
    offset.write_text("+0\n", encoding="ascii")
    yield {
        "environment": {
            "LD_PRELOAD": str(_faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_CACHE_DURATION": "1",
            # The clock that is stepped is the one of the wall; files have the real time, as those from before a step.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
    }


def _faketime():
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def _stepped(world, seconds):
    clock = world.folder / "clock"
    for step in (HOUR, -HOUR, 0):
        changed = clock.with_suffix(".new")
        changed.write_text(f"{step:+d}\n", encoding="ascii")
        changed.replace(clock)
        time.sleep(max(seconds / 3, 2))
        if abs(_date(world) - time.time() - step) > HOUR / 2:
            raise NotRunError("the service does not see the clock's steps: libfaketime does not work here")
    return []


def _date(world):
    """Return the time that the service writes into its answers, in seconds of the epoch."""
    with urllib.request.urlopen(urllib.request.Request(world.url, data=b"<x/>"), timeout=10) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()


def _descriptors_exhausted(world, seconds):
    pid = world.service.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    few = descriptors(pid) + 30
    with _attack(world, "holding", HOLDERS) as notes:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, usual[1]))
        try:
            time.sleep(seconds)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    return [f"a limit of {few} descriptors and {HOLDERS} connections that say nothing", *notes]


# Bad clients.


@contextlib.contextmanager
def _attack(world, kind, number):
    """Attack for the time of a block; yield a list that holds what the attackers were told afterwards."""
    notes = []
    log = world.folder / f"{kind}.log"
    with started(Program(python("faults.attackers", kind, HOST, world.port, number), log, ready="attacking")) as attack:
        yield notes
        attack.stop()
        report = json.loads(attack.said().splitlines()[-1])
        told = sorted(report["told"].items(), key=lambda item: -item[1])
        notes += ["they were told: " + ", ".join(f"{what} ({count})" for what, count in told)] if told else []
        if report["wrong"]:
            raise WrongAnswersError(report["wrong"])


class WrongAnswersError(Exception):
    """Raised if somebody else than the load got a wrong answer; holds what was wrong, and how often."""


def _slowloris(world, seconds):
    return _attacked("slowloris", LORISES, world, max(seconds, REQUEST_SECONDS + 3))


def _attacked(kind, number, world, seconds):
    with _attack(world, kind, number) as notes:
        time.sleep(seconds)
    return notes


# The service itself.


def _ended(how, world, seconds):
    deadline = time.monotonic() + max(seconds, KILL_SECONDS + 1)
    times = 0
    while time.monotonic() < deadline:
        time.sleep(KILL_SECONDS)
        if how == signal.SIGKILL:
            world.service.kill()
        else:
            world.service.stop()
        world.service.start()
        times += 1
    return [f"{times} times"]


@contextlib.contextmanager
def _listening(_folder):
    with socket.create_server((HOST, 0), backlog=511) as listening:
        yield {"listening": listening}


def _no_activation():
    return None if find_spec("vnctoken.systemd") else "the service takes no socket over"


# The audit log.


@contextlib.contextmanager
def _audit(required, folder):
    yield {
        "settings": f":audit_log: {folder}/audit/audit.log\n:audit_required: {'yes' if required else 'no'}\n",
    }


def _audit_verified(world):
    log = world.folder / "audit" / "audit.log"
    command = python("vnctoken.server", "--verify-audit", str(log))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return [] if done.returncode == 0 else [f"--verify-audit: {(done.stdout + done.stderr).strip()[-300:]}"]


def _audit_full(world, seconds):
    if not (world.folder / "audit" / "audit.log").exists():
        raise NotRunError("the service writes no audit log")
    return _full(lambda world: world.folder / "audit", world, seconds)


class NotRunError(Exception):
    """Raised if a fault cannot be injected here; the text says why."""


FAULTS = (
    Fault("oned killed", _oned_killed, Allowed(frozenset({ONED}))),
    Fault("oned hung", _oned_hung, Allowed(frozenset({ONED}))),
    Fault("oned slow", partial(_oned_moody, "delay 3", "delay 0"), Allowed(frozenset({ONED}))),
    Fault("oned resetting", partial(_oned_moody, "kind RESET", "kind NORMAL"), Allowed(frozenset({ONED}))),
    Fault("Redis failing over", _redis_fails_over, Allowed(frozenset({STORE}), lost=True, gone=True), redis=True),
    Fault("disk full", partial(_full, lambda world: world.var), Allowed(frozenset({STORE})), small=("one/var",)),
    Fault("token folder read-only", _read_only, Allowed(frozenset({STORE})), small=("one/var",)),
    Fault(
        "clock stepped",
        _stepped,
        stage=_clock,
        lacking=lambda: None if _faketime() else "libfaketime is not installed (Debian package faketime)",
    ),
    Fault("descriptors exhausted", _descriptors_exhausted, Allowed(frozenset({ONED, STORE, FULL}), lost=True)),
    Fault("1,000 slowloris clients", _slowloris, Allowed(frozenset({FULL}), lost=True)),
    Fault("hostile XML", partial(_attacked, "hostile", HOSTILE)),
    Fault("service killed", partial(_ended, signal.SIGKILL), Allowed(lost=True)),
    Fault(
        "service killed (socket kept)",
        partial(_ended, signal.SIGKILL),
        Allowed(lost=True),
        stage=_listening,
        lacking=_no_activation,
    ),
    Fault(
        "service restarted (socket kept)",
        partial(_ended, signal.SIGTERM),
        stage=_listening,
        lacking=_no_activation,
    ),
    Fault("audit log's disk full", _audit_full, small=("audit",), stage=partial(_audit, False)),
    Fault(
        "audit log's disk full (required)",
        _audit_full,
        Allowed(frozenset({ONED})),
        small=("audit",),
        stage=partial(_audit, True),
        check=_audit_verified,
    ),
)
