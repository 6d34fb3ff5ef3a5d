"""What is fuzzed: a function of bytes, inputs to begin with, and the bounds that hold for each."""

from __future__ import annotations

import resource
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twisted.logger import capturedLogs, eventAsText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES = 65_536
"""How long an input may be: as long as the body of a call, unless it is configured otherwise."""

CPU_SECONDS = 1.0
"""How much of a processor an input of MAX_BYTES may cost."""

MEMORY_BYTES = 64 * 2**20
"""By how much the process may grow for an input."""

SECRET = "s3cr3t-m4rk3r"
"""The password in the inputs: it must be in no message of an error, and in no event of the log."""


class BoundError(AssertionError):
    """Raised if an input takes too long, or too much memory."""


class _TooLongError(BaseException):
    """Raised in what does not end; not an Exception, so that what is under test does not take it for one of its own."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed. `check` raises whatever must not be; it is expected to be quiet about the documented errors.

    `words` are what inputs are made of, besides what is in the `seeds`.
    """

    name: str
    check: Callable[[bytes], None] = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    words: tuple[bytes, ...] = field(default=(), repr=False)

    def run(self, data: bytes) -> None:
        """Check an input, within the bounds. Raises BoundError, or what `check` raises."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        with _interrupted(2 * CPU_SECONDS):
            self.check(data)
        seconds = time.process_time() - began
        if seconds > CPU_SECONDS:
            raise BoundError(f"{len(data)} bytes take {seconds:.1f} s")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > MEMORY_BYTES:
            raise BoundError(f"{len(data)} bytes take {grown >> 20} MiB")


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """End what takes longer; what waits in C only when it is back."""

    def stop(_number: int, _frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except _TooLongError:
        raise BoundError(f"it does not end within {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def quiet_log(*, secret: bool = True) -> Iterator[list]:
    """Find no traceback among what is logged, and no SECRET."""
    with capturedLogs() as events:
        yield events
    for event in events:
        if "log_failure" in event:
            raise AssertionError(eventAsText(event)) from event["log_failure"].value
        assert not secret or SECRET not in eventAsText(event), "the log has the secret"


def discreet(error: Exception) -> None:
    """Find no SECRET in the text of an error, nor in those that it came from."""
    cause: BaseException | None = error
    while cause is not None:
        assert SECRET not in str(cause), "the error's text has the secret"
        cause = cause.__cause__
