"""Spare an oned that is down: callers are refused at once, and one at a time finds out whether it is back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from vnctoken.errors import OnedError, VnctokenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

FAILURES = 5
"""How many failures in a row shut oned off."""

PAUSE = 1.0
"""For how many seconds nobody asks then. It doubles with each probe that fails, up to LONGEST_PAUSE."""

LONGEST_PAUSE = 5.0

PROBE_SECONDS = 5.0
"""For how long a probe keeps others from being the next one."""

_Answer = TypeVar("_Answer")


class CircuitBreaker:
    """Counts the failures of oned in a row; FAILURES of them shut it off until a probe has succeeded.

    An OnedError is a failure. Subclasses of it and all other errors of ours are what oned has answered: successes. Of
    anything else, a cancelled call among them, nothing is learnt.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures = 0
        self._last = ""
        self._shut = False
        self._pause = PAUSE
        self._resumes = 0.0
        self._probe: object = None
        self._asking: set[Deferred[Any]] = set()

    @property
    def shut(self) -> bool:
        """Whether oned is shut off, so that calls are refused."""
        return self._shut

    async def guard(self, ask: Callable[[], Deferred[_Answer]]) -> _Answer:
        """Return, or raise, what comes of `ask`, which asks oned and has a deadline.

        Raises OnedError at once while oned is shut off, and for calls that are in flight when that happens: they make
        way for the probe. A probe that takes longer than PROBE_SECONDS counts as failed and lets the next call be one,
        but may still succeed: some questions take oned long.
        """
        call = object()
        overdue = self._admit(call)
        asking = ask()
        self._asking.add(asking)
        try:
            result = await asking
        except VnctokenError as error:
            if type(error) is OnedError:
                self._failed(call, str(error))
            else:
                self._succeeded()
            raise
        except CancelledError:
            if asking not in self._asking:
                raise self._refusal() from None
            raise
        finally:
            self._asking.discard(asking)
            if overdue is not None and overdue.active():
                overdue.cancel()
            if self._probe is call:
                self._probe = None
        self._succeeded()
        return result

    def _admit(self, call: object) -> IDelayedCall | None:
        """Let a call through, or raise OnedError. A probe is told when it is overdue."""
        if not self._shut:
            return None
        if self._probe is not None or self._clock.seconds() < self._resumes:
            raise self._refusal()
        self._probe = call
        late = f"oned did not answer within {PROBE_SECONDS:g} seconds"
        return self._clock.callLater(PROBE_SECONDS, self._failed, call, late)

    def _refusal(self) -> OnedError:
        seconds = math.ceil(self._resumes - self._clock.seconds())
        when = "being asked again" if seconds <= 0 else f"asked again in {seconds} second{'s' if seconds > 1 else ''}"
        return OnedError(f"oned has failed {self._failures} times in a row, lastly: {self._last}; it is {when}")

    def _failed(self, call: object, reason: str) -> None:
        if self._shut and self._probe is not call:
            return
        self._failures += 1
        self._last = reason
        if self._shut:
            self._probe = None
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._resumes = self._clock.seconds() + self._pause
        elif self._failures >= FAILURES:
            self._shut_off()

    def _shut_off(self) -> None:
        self._shut = True
        self._pause = PAUSE
        self._resumes = self._clock.seconds() + self._pause
        self._log.warn(
            "oned has failed {failures} times in a row, lastly: {reason}; calls are refused until it answers again",
            failures=self._failures,
            reason=self._last,
        )
        given_up, self._asking = self._asking, set()
        for asking in given_up:
            asking.cancel()

    def _succeeded(self) -> None:
        self._failures = 0
        if self._shut:
            self._shut = False
            self._probe = None
            self._log.info("oned answers again")
