"""Readers of the token folder never stumble: whatever happens to the tokens, and to the service.

Both kinds of reader look tokens up without a pause, in processes of their own. Each lookup is judged by when it began
and ended, in seconds of the monotonic clock, which is the same for all processes.

Run as a program, this file is a service without network that issues and takes back tokens as fast as it is told to.
"""

import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
import xmlrpc.client
from bisect import bisect_left, bisect_right
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import readers
from conftest import NO_LIMITS, running, vnctoken_server
from screens import ONED
from twisted.internet.task import deferLater, react

from vnctoken.tokens import Grant, digest
from vnctoken.tokens.folder import TokenFolder

VMS = 500
OPERATIONS = 10_000
CALLS_PER_SECOND = 1000
LONG, SHORT = 600, (1, 2, 3)
CALLERS, KILLS = 3, 6
SESSION = "alice:secret"
# None is trimmed: of calls that are cut off nobody would know which token took the place of which.
SETTINGS = f"{NO_LIMITS}:tokens_per_vm: 1000"

FORGETTING_SECONDS = 2.0
"""How long after its expiry a token may still be found: it is gone only when the service has written the file, and
tokens of many VMs may expire at once, on a machine that has other work. A lookup later than that is a failure."""


@dataclass
class Life:
    """A token by the monotonic clock.

    Lookups that begin from `answered` on and end by `ending` have to find it; those that begin after `gone` must not.
    """

    target: list
    answered: float
    expires: float = inf
    ending: float = inf
    gone: float = inf


@dataclass
class Seen:
    """What a reader did and found."""

    lookups: int = 0
    needed: int = 0
    missed: list = field(default_factory=list)
    accepted: list = field(default_factory=list)
    wrong: list = field(default_factory=list)
    exceptions: list = field(default_factory=list)
    readings: int = 0
    latest: float = 0

    def __str__(self):
        return (
            f"{self.readings} readings of the folder, {self.lookups} lookups, {self.needed} that had to succeed;"
            f" {len(self.missed)} of these failed, {len(self.accepted)} found what was gone, {len(self.wrong)} another"
            f" target, {len(self.exceptions)} exceptions; the latest was found {self.latest:.3f} s after its expiry"
        )


def judged(report, lives):
    """Hold what a reader found against the lives of the tokens."""
    begins, ends = zip(*report["times"], strict=True)
    seen = Seen(readings=len(begins), exceptions=report["failures"])
    for token, life in lives.items():
        seen.lookups += len(begins) - bisect_left(begins, life.answered)
        first, behind = bisect_left(begins, life.answered), bisect_right(ends, life.ending)
        needed = set(range(first, behind))
        seen.needed += len(needed)
        for run_first, run_last, target in report["found"].get(token, ()):
            needed -= set(range(run_first, run_last + 1))
            if target != life.target:
                seen.wrong.append((target, life))
            if begins[run_last] > life.gone:
                seen.accepted.append((begins[run_last] - life.gone, life))
            if life.gone >= life.expires:
                seen.latest = max(seen.latest, begins[run_last] - life.expires)
        seen.missed += [(begins[number], ends[number], life) for number in needed]
    return seen


@contextlib.contextmanager
def reading(folder, journal):
    """Let both readers read for the time of a block; yields what gives their reports, once."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for kind in ("Older", "Newer"):
            command = (sys.executable, readers.__file__, kind, folder, journal)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes[kind] = stack.enter_context(subprocess.Popen(command, **pipes))
            stack.callback(processes[kind].kill)
        yield lambda: {kind: json.loads(process.communicate(timeout=60)[0]) for kind, process in processes.items()}


def assert_nobody_stumbled(reports, lives):
    """Check what the readers found, and that this says something."""
    for kind, report in reports.items():
        seen = judged(report, lives)
        print(f"{kind}: {seen}")  # noqa: T201 (figures, for pytest -s)
        assert seen.exceptions[:3] == []
        assert seen.missed[:3] == []
        assert seen.wrong[:3] == []
        assert seen.accepted[:3] == []
        assert seen.readings > 50
        assert seen.needed > 20 * len(lives)


# Tokens come and go.


class Driver:
    """Does what portals do, and writes down when."""

    def __init__(self, reactor, folder, journal):
        self._reactor = reactor
        self._journal = journal
        self._began = time.time() - time.monotonic()
        self._folder = TokenFolder(folder, reactor, self._now, ttl=LONG, tokens_per_vm=8)
        self._random = random.Random(4)
        self._of_vm = {vm_id: {} for vm_id in range(VMS)}
        self.lives = {}
        self.done = {"issue": 0, "revoke": 0}

    def _now(self):
        return self._began + time.monotonic()

    @property
    def expired(self):
        """How many tokens have ended by themselves so far."""
        now = time.monotonic()
        return sum(life.ending == life.expires < now for life in self.lives.values())

    async def run(self):
        self._folder.prepare()
        self._folder.start()
        self._folder.start()
        began = time.monotonic()
        calls = 0
        while calls + self.expired < OPERATIONS:
            for _ in range(20):
                await (self._revoke() if self._random.random() < 0.3 else self._issue())
                calls += 1
            await deferLater(self._reactor, max(began + calls / CALLS_PER_SECOND - time.monotonic(), 0), lambda: None)
        await deferLater(self._reactor, max(SHORT) + FORGETTING_SECONDS + 0.5, lambda: None)
        await self._folder.close()

    async def _issue(self):
        vm_id = self._random.randrange(VMS)
        ttl = self._random.choice((LONG, *SHORT))
        before = time.monotonic()
        grant = Grant(vm_id, f"host-{vm_id}", 5900 + vm_id, self._now(), ttl)
        token = await self._folder.issue(grant)
        self._journal.write(f"{token}\n".encode())
        after = time.monotonic()
        expires = grant.expires - self._began
        life = Life([grant.host, str(grant.port)], after, expires, ending=expires, gone=expires + FORGETTING_SECONDS)
        self.lives[token] = self._of_vm[vm_id][digest(token)] = life
        self.done["issue"] += 1
        # Those that the new one took the place of.
        await self._ended(vm_id, before, after)

    async def _revoke(self):
        vm_id = self._random.randrange(VMS)
        tokens = list(self._of_vm[vm_id])
        wanted = None if self._random.random() < 0.1 else frozenset(tokens[:1])
        before = time.monotonic()
        await self._folder.revoke(vm_id, wanted)
        after = time.monotonic()
        self.done["revoke"] += 1
        gone = tokens if wanted is None else tokens[:1]
        live = {one.digest for one in await self._folder.live(vm_id)}
        assert not live & set(gone)
        await self._ended(vm_id, before, after)

    async def _ended(self, vm_id, before, after):
        live = {one.digest for one in await self._folder.live(vm_id)}
        for token in self._of_vm[vm_id].keys() - live:
            life = self._of_vm[vm_id].pop(token)
            life.ending = min(life.ending, before)
            # What has expired meanwhile is gone for that reason.
            if life.expires > time.monotonic():
                life.gone = after


async def drive(reactor, folder, journal):
    driver = Driver(reactor, folder, journal)
    await driver.run()
    lives = {token: vars(life) for token, life in driver.lives.items()}
    json.dump({"done": {**driver.done, "expire": driver.expired}, "lives": lives}, sys.stdout)


def test_10000_tokens_come_and_go_over_500_vms_and_no_reader_stumbles(tmp_path):
    """A lookup may find an expired token for FORGETTING_SECONDS at most, and a revoked one not at all."""
    folder, journal = tmp_path / "tokens", tmp_path / "journal"
    folder.mkdir(mode=0o700)
    journal.touch()
    with reading(folder, journal) as reports:
        command = (sys.executable, "-W", "error", __file__, folder, journal)
        driven = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert driven.returncode == 0, driven.stderr
        result = json.loads(driven.stdout)
        print(result["done"])  # noqa: T201 (figures, for pytest -s)
        assert sum(result["done"].values()) >= OPERATIONS
        assert min(result["done"].values()) > OPERATIONS / 10
        assert_nobody_stumbled(reports(), {token: Life(**life) for token, life in result["lives"].items()})


# The service comes and goes.


def wait_in_vain(callers, seconds):
    """Let so much time pass, unless a caller ends, which none should."""
    done, _ = wait(callers, seconds, FIRST_COMPLETED)
    for caller in done:
        caller.result()
        raise AssertionError("a caller has ended")


class Portal:
    """Calls a service that is killed again and again, and writes down when."""

    def __init__(self, journal):
        self._journal = journal
        self._turn = threading.Lock()
        self._up = threading.Event()
        self._url = ""
        self.over = False
        self.runs = []
        self.lives = {}
        self.done = {"issue": 0, "revoke": 0}

    def opened(self, url):
        """Let calls be made to a service that is up."""
        self._url = url
        self.runs.append([time.monotonic(), inf])
        self._up.set()

    def closing(self):
        """Take note that the service is killed in a moment."""
        self._up.clear()
        self.runs[-1][1] = time.monotonic()

    def end(self):
        """Let no more calls be made."""
        self.over = True
        self._up.set()

    def call(self, seed, vm_ids):
        """Make calls about some VMs that nobody else makes calls about, to the end."""
        chance = random.Random(seed)
        of_vm = {vm_id: {} for vm_id in vm_ids}
        while self._up.wait() and not self.over:
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                xmlrpc.client.ServerProxy(self._url) as server,
            ):
                while self._up.is_set() and not self.over:
                    vm_id = chance.choice(vm_ids)
                    if chance.random() < 0.3:
                        self._revoke(server, vm_id, of_vm[vm_id])
                    else:
                        self._issue(server, vm_id, of_vm[vm_id], chance.choice((LONG, *SHORT)))

    def _issue(self, server, vm_id, lives, ttl):
        before = time.monotonic()
        ok, console, _ = server.one.vm.vnctoken(SESSION, vm_id, {"ttl": ttl})
        assert ok, console
        token = console["Token"]
        with self._turn:
            self._journal.write(f"{token}\n".encode())
            after = time.monotonic()
            life = Life([console["Host"], str(console["Port"])], after, after + ttl, ending=before + ttl)
            self.lives[token] = lives[token] = life
            self.done["issue"] += 1

    def _revoke(self, server, vm_id, lives):
        token = next(iter(lives), None)
        if token is None:
            return
        life = lives.pop(token)
        # If the service is killed meanwhile nobody knows what became of the token.
        life.ending = min(life.ending, time.monotonic())
        ok, count, _ = server.one.vm.vncrevoke(SESSION, vm_id, token)
        assert ok, count
        life.gone = time.monotonic()
        with self._turn:
            self.done["revoke"] += 1

    def settled(self):
        """Return the lives, with when each expired token had to be gone.

        That is FORGETTING_SECONDS after its expiry, or once a service is up again if none was then.
        """
        for life in self.lives.values():
            forgotten = life.expires + FORGETTING_SECONDS
            life.gone = min(life.gone, *(max(up, forgotten) for up, down in self.runs if down >= forgotten), inf)
        return self.lives


def test_a_service_that_is_killed_every_second_makes_no_reader_stumble(tmp_path):
    """A plain folder cannot forget while nobody runs: what expires then may be found until the service is up again."""
    folder, journal = tmp_path / "var" / "sunstone_vnc_tokens", tmp_path / "journal"
    folder.mkdir(parents=True, mode=0o700)
    screens = {vm_id: {"PORT": str(5900 + vm_id)} for vm_id in range(VMS)}
    with contextlib.ExitStack() as stack:
        oned = stack.enter_context(running(sys.executable, "-c", ONED, json.dumps(screens), ready="listens on"))
        oned_url = oned.wait_for(r"listens on (\S+)").group(1)
        portal = Portal(stack.enter_context(journal.open("ab", buffering=0)))
        reports = stack.enter_context(reading(folder, journal))
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(portal.end)
        callers = [pool.submit(portal.call, number, range(number, VMS, CALLERS)) for number in range(CALLERS)]
        for _ in range(KILLS):
            with vnctoken_server(tmp_path, oned_url, SETTINGS) as service:
                portal.opened(service.url)
                wait_in_vain(callers, seconds=1)
                portal.closing()
                service.process.process.kill()
        # As a kill at the worst moment leaves.
        half_written = folder.with_name(folder.name + ".new") / "one-7.0123456789abcdef"
        half_written.write_text("0123")
        with vnctoken_server(tmp_path, oned_url, SETTINGS) as service:
            assert not half_written.exists()
            portal.opened(service.url)
            wait_in_vain(callers, seconds=FORGETTING_SECONDS + 1)
            portal.end()
            for caller in callers:
                caller.result()
            found = reports()
        print(portal.done)  # noqa: T201 (figures, for pytest -s)
        assert portal.done["issue"] > 100
        assert portal.done["revoke"] > 30
        assert_nobody_stumbled(found, portal.settled())


if __name__ == "__main__":
    with Path(sys.argv[2]).open("ab", buffering=0) as opened:
        react(drive, (Path(sys.argv[1]), opened))
