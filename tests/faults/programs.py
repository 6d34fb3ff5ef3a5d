"""The programs of a run: each can be killed, hung and started again at the same place, and is stopped at the end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
START_SECONDS = 30
STOP_SECONDS = 12


class StartError(Exception):
    """Raised if a program does not start; the text is what it said."""


class Program:
    """A program that says in its output when it is ready; the output goes to a file."""

    def __init__(self, command, log, *, ready, environment=(), pass_fds=()):
        self._command = [str(part) for part in command]
        self.log = log
        self._ready = re.compile(ready)
        self._environment = dict(environment)
        self._pass_fds = pass_fds
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def start(self):
        """Start it and wait until it is ready. Raises StartError."""
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **self._environment}
        environment.pop("JOURNAL_STREAM", None)
        with self.log.open("a", encoding="utf-8") as output:
            begin = output.tell()
            self.process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=self._pass_fds,
                # Ctrl-C is for us, who end it in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.search(self.said(begin)):
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise StartError(f"{' '.join(self._command[:4])} ... did not start:\n{self.said(begin).strip()}")
            time.sleep(0.02)

    def said(self, begin=0):
        """Return its output so far."""
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")

    def order(self, line):
        """Write a line to its stdin."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, how):
        self.process.send_signal(how)

    def kill(self):
        """End it without a chance to say goodbye, as the kernel's out-of-memory killer does."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """End it."""
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        if self.alive:
            # One that hangs takes no signal but this.
            self.signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def started(program):
    """Run a program for the time of a block; within it, it may be killed and started again."""
    try:
        program.start()
        yield program
    finally:
        program.stop()


def python(module, *arguments):
    """Return the command that runs one of our modules."""
    return [sys.executable, "-m", module, *arguments]
