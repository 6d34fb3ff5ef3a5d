"""``python -m faults.soak``: a steady load for some minutes, after which the service must be no larger than it was.

Tokens are issued, taken back, and expire; VMs move and end, and their tokens with them. Exits with 1 if there was a
wrong answer, or if memory, descriptors or files have grown.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
import threading
import time
import xmlrpc.client
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from faults.judging import HOMES, session
from faults.load import FolderCheck
from faults.vitals import at_rest
from faults.watching import left_in, told_too_much
from faults.world import world
from vnctoken.sandbox.population import ALICE, ONEADMIN

TTL = 20
"""The seconds that a token of the run lives."""

SHORT_TTL = 2
MOVING = (5, 27, 28)
"""The VMs whose tokens die with their consoles, so the load leaves them alone."""

GONE_SECONDS = 15
"""So long a token may stay whose time, or whose console, is over."""

MEMORY_BOUND = 1.5
"""By so many MB the heap may be larger in the last quarter than in the second one.

The service gives back first what it does not use (faults.tidy). Measured in five minutes: 0.2.
"""

_SERVER = "faults.tidy"
WARM_UP = 0.25
_LOOKS = 60
_MOST = 5

say = partial(print, flush=True)


@dataclass(frozen=True)
class Look:
    """What the service uses at a moment; `heap` in MB."""

    seconds: float
    heap: float
    descriptors: int
    threads: int
    files: int


def growth(looks):
    """Return what has grown between the first quarter after the warm-up and the last quarter, in words."""
    whole = looks[-1].seconds
    early = [look for look in looks if whole * WARM_UP <= look.seconds <= whole * (WARM_UP + 0.25)]
    late = [look for look in looks if look.seconds >= whole * 0.75]
    if not early or not late:
        return ["the run was too short to tell"]
    grown = []
    more = median(look.heap for look in late) - median(look.heap for look in early)
    if more > MEMORY_BOUND:
        grown.append(f"the heap has grown by {more:.1f} MB, and {MEMORY_BOUND} MB are allowed")
    for name in ("descriptors", "files"):
        # Calls in flight have some; so the least is taken.
        before, after = (min(getattr(look, name) for look in part) for part in (early, late))
        if after > before:
            grown.append(f"{name}: {after} instead of {before}")
    return grown


class Mover:
    """Moves and ends VMs, and looks whether their tokens go with them; `turns` and `problems` count."""

    def __init__(self, made, oned_url):
        self._service, self._oned = made.url, oned_url
        self._store = FolderCheck(made.tokens)
        self._random = random.Random(7)
        self._hosts = dict.fromkeys(MOVING, 0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.turns = 0
        self.problems = Counter()

    def start(self):
        for vm_id in MOVING:
            self._token(vm_id, {"ttl": SHORT_TTL})
        self._thread.start()

    def stop(self):
        self._ending.set()
        self._thread.join()

    def _run(self):
        for vm_id in itertools.cycle(MOVING):
            if self._ending.wait(0.5):
                return
            try:
                self._turn(vm_id)
            except (OSError, xmlrpc.client.Error, AssertionError) as error:
                self.problems[f"{type(error).__name__}: {error}"] += 1
            self.turns += 1

    def _turn(self, vm_id):
        what = self._random.choice(("poweroff", "migrate", "expire"))
        token = self._token(vm_id, {"ttl": SHORT_TTL} if what == "expire" else {})
        if what == "poweroff":
            self._act("one.vm.action", "poweroff", vm_id)
        elif what == "migrate":
            self._hosts[vm_id] = 1 - self._hosts[vm_id]
            self._act("one.vm.migrate", vm_id, self._hosts[vm_id], True)
        deadline = time.monotonic() + GONE_SECONDS
        while self._store.target(vm_id, token) is not None:
            if time.monotonic() > deadline:
                self.problems[f"a token outlived its VM's console, or its time ({what})"] += 1
                break
            time.sleep(0.1)
        if what == "poweroff":
            self._act("one.vm.action", "resume", vm_id)

    def _token(self, vm_id, options):
        answer = xmlrpc.client.ServerProxy(self._service).one.vm.vnctokenonly(session(ALICE), vm_id, options)
        assert answer[0] is True, f"no token for VM {vm_id}: {answer[1]}"
        assert self._store.target(vm_id, answer[1]) is not None, f"the token for VM {vm_id} is not in the store"
        return answer[1]

    def _act(self, method, *arguments):
        oned = xmlrpc.client.ServerProxy(self._oned)
        answer = getattr(oned, method)(session(ONEADMIN), *arguments)
        assert answer[0] is True, f"{method}: {answer[1]}"


def main(arguments=None):
    """Run, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="(default %(default)s)")
    options = parser.parse_args(arguments)
    for how in (signal.SIGINT, signal.SIGTERM):
        signal.signal(how, lambda *_: sys.exit(1))
    seconds = options.minutes * 60
    homes = {vm_id: user for vm_id, user in HOMES.items() if vm_id not in MOVING}
    settings = f":token_ttl: {TTL}\n"
    with (
        tempfile.TemporaryDirectory(prefix="vnctoken-soak-") as folder,
        world(Path(folder), settings=settings, homes=homes, events=True, kept=TTL / 2, server=_SERVER) as made,
    ):
        mover = Mover(made, made.oned_url)
        mover.start()
        try:
            looks, calls, wrong = _watched(made, mover, seconds)
        finally:
            mover.stop()
        wrong.update(mover.problems)
        problems = [f"{what}: {count} times" for what, count in wrong.most_common(_MOST)]
        problems += [*made.watcher.problems, *told_too_much(made.service.said()), *left_in(made.tokens)]
        alive = made.service.alive
    problems += growth(looks) if alive else ["the service is not there any more"]
    say(f"\n{calls} calls, and {mover.turns} changes of VMs")
    for problem in problems:
        say(f"FAILED: {problem}")
    return int(bool(problems))


def _watched(made, mover, seconds):
    """Look at the service for so many seconds; return the looks, how many calls there were, and what was wrong."""
    say("| Minutes | Calls | Heap, MB | Descriptors | Threads | Files | Changes of VMs |")
    say("|---|---|---|---|---|---|---|")
    looks, calls, wrong = [], 0, Counter()
    began = seen = time.monotonic()
    while time.monotonic() - began < seconds and made.service.alive:
        time.sleep(max(seconds / _LOOKS, 1))
        now = time.monotonic()
        for outcome in made.load.outcomes(seen):
            if outcome.ended < now:
                calls += 1
                if outcome.kind != "right":
                    wrong[f"{outcome.kind}: {outcome.what}"] += 1
        made.load.forget(now)
        seen = now
        look = _look(made, now - began)
        looks.append(look)
        if len(looks) % 5 == 1 or now - began >= seconds:
            cells = (f"{look.seconds / 60:.1f}", calls, f"{look.heap:.1f}", look.descriptors, look.threads, look.files)
            say(f"| {' | '.join(map(str, cells))} | {mover.turns} |")
    return looks, calls, wrong


def _look(made, seconds):
    made.service.signal(signal.SIGUSR2)  # for faults.tidy
    now = at_rest(made.service.pid)
    folders = made.tokens, made.tokens.with_name(made.tokens.name + ".new")
    files = sum(1 for folder in folders for _ in folder.iterdir())
    return Look(seconds, now.heap, now.descriptors, now.threads, files)


if __name__ == "__main__":
    sys.exit(main())
