"""``python -m faults``: inject one fault after another into a service under load, and print a table in Markdown.

Exits with 1 if there was a wrong answer, a call that was refused or lost without a reason, no recovery, an incomplete
or a forgotten file, or descriptors that do not come back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from faults.injuries import FAULTS, NotRunError, WrongAnswersError
from faults.programs import StartError
from faults.tally import Span, Tally, recovered_at, tally
from faults.vitals import Vitals, at_rest
from faults.watching import left_in, told_too_much
from faults.world import world

RECOVERY_SECONDS = 40
SETTLE_SECONDS = 20
SLACK = 4
"""So many more descriptors than before are calls in flight."""

_IN_OWN_NAMESPACE = "VNCTOKEN_FAULTS_NAMESPACE"
_MOST = 5

say = partial(print, flush=True)


@dataclass
class Row:
    """What one fault came to."""

    name: str
    tally: Tally = field(default_factory=Tally)
    recovery: float | None = None
    before: Vitals | None = None
    after: Vitals | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    not_run: str | None = None


def run(fault, seconds, calm, folder):
    """Inject a fault into a world of its own, and return its row."""
    row = Row(fault.name)
    if (lacking := fault.lacking()) is not None:
        row.not_run = lacking
        return row
    try:
        with contextlib.ExitStack() as stack:
            for small in fault.small:
                stack.enter_context(_small_filesystem(folder / small))
            more = stack.enter_context(fault.stage(folder))
            with world(folder, redis=fault.redis, **more) as made:
                _suffer(fault, made, row, seconds, calm)
                row.problems += fault.check(made)
            if not fault.redis:
                row.problems += left_in(made.tokens)
    except NotRunError as reason:
        row.not_run = str(reason)
    except StartError as error:
        row.problems.append(str(error))
    except pytest.skip.Exception as missing:
        row.not_run = str(missing)
    return row


def _suffer(fault, made, row, seconds, calm):
    made.load.wait(lambda outcomes: recovered_at(outcomes, 0), RECOVERY_SECONDS)
    time.sleep(calm)
    row.before = at_rest(made.service.pid)
    began = time.monotonic()
    try:
        row.notes += fault.inject(made, seconds)
    except WrongAnswersError as wrong:
        row.tally.wrong.update(wrong.args[0])
    ended = time.monotonic()
    recovered = made.load.wait(lambda outcomes: recovered_at(outcomes, ended), RECOVERY_SECONDS)
    if recovered is None:
        row.problems.append(f"no recovery within {RECOVERY_SECONDS} seconds")
        recovered = time.monotonic()
    else:
        row.recovery = recovered - ended
    time.sleep(calm)
    if not made.service.alive:
        row.problems.append("the service is not there any more")
        return
    row.after = _settled(made.service.pid, row.before)
    if row.after.descriptors > row.before.descriptors + SLACK:
        row.problems.append(f"{row.after.descriptors - row.before.descriptors} descriptors have not come back")
    attacked = row.tally.wrong
    row.tally = tally(made.load.outcomes(), Span(began, ended, recovered), fault.allowed)
    row.tally.wrong.update(attacked)
    if made.watcher:
        row.problems += made.watcher.problems
    row.problems += told_too_much(made.service.said())


def _settled(pid, before):
    """Return what a process uses, once it has let go of the connections of the fault."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now = at_rest(pid)
        if now.descriptors <= before.descriptors + SLACK or time.monotonic() > deadline:
            return now
        time.sleep(0.2)


@contextlib.contextmanager
def _small_filesystem(place):
    if not os.environ.get(_IN_OWN_NAMESPACE):
        raise NotRunError("no mount namespace to be had here")
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


# What is printed.

HEADER = (
    "| Fault | Right answers | Refused | Wrong | Lost | Slowest | Recovered after | Memory, MB | Descriptors |",
    "|---|---|---|---|---|---|---|---|---|",
)


def markdown(row):
    """Return a row of the table."""
    if row.not_run:
        return f"| {row.name} | not run: {row.not_run} | | | | | | | |"

    def counted(counter):
        return ", ".join(f"{what}: {count}" for what, count in counter.most_common()) or "0"

    recovery = "never" if row.recovery is None else f"{row.recovery:.1f} s"
    memory = descriptors = ""
    if row.before and row.after:
        memory = f"{row.before.memory:.0f} → {row.after.memory:.0f}"
        descriptors = f"{row.before.descriptors} → {row.after.descriptors}"
    wrong = sum(row.tally.wrong.values())
    cells = [row.name, row.tally.right, counted(row.tally.refused), wrong, counted(row.tally.lost)]
    cells += [f"{row.tally.slowest:.1f} s", recovery, memory, descriptors]
    return f"| {' | '.join(map(str, cells))} |"


def shortcomings(row):
    """Return what must not be, in words."""
    return [*(f"{what}: {count} times" for what, count in row.tally.wrong.most_common(_MOST)), *row.problems]


def main(arguments=None):
    """Run the faults that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this fault; may be repeated")
    parser.add_argument("--seconds", type=float, default=10, help="how long a fault lasts (default %(default)s)")
    parser.add_argument("--calm", type=float, default=3, help="seconds before and after it (default %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the programs' logs there")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - {fault.name for fault in FAULTS}:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(fault.name for fault in FAULTS)}")
    _enter_namespace(sys.argv[1:] if arguments is None else arguments)
    for how in (signal.SIGINT, signal.SIGTERM):
        signal.signal(how, lambda *_: sys.exit(1))
    say(f"Python {platform.python_version()}, {os.cpu_count()} cores, faults of {options.seconds:g} s\n")
    say("\n".join(HEADER))
    rows = []
    for fault in FAULTS:
        if options.only and fault.name not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix="vnctoken-faults-") as temporary:
            rows.append(run(fault, options.seconds, options.calm, Path(temporary)))
            if options.keep:
                _keep_logs(Path(temporary), options.keep / fault.name.replace(" ", "-"))
        say(markdown(rows[-1]))
    say()
    for row in rows:
        for note in row.notes:
            say(f"- {row.name}: {note}")
    failed = [(row.name, shortcoming) for row in rows for shortcoming in shortcomings(row)]
    for name, shortcoming in failed:
        say(f"FAILED {name}: {shortcoming}")
    return int(bool(failed))


def _keep_logs(folder, where):
    where.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, where)


def _enter_namespace(arguments):
    """Go on in a mount namespace of our own, where there is one to be had: what is mounted there ends with us."""
    if os.environ.get(_IN_OWN_NAMESPACE) is not None:
        return
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    trial = subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True)
    if trial.returncode:
        os.environ[_IN_OWN_NAMESPACE] = ""
        return
    os.environ[_IN_OWN_NAMESPACE] = "1"
    command = [*unshare, sys.executable, "-m", "faults", *map(str, arguments)]
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
