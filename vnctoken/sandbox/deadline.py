"""How long is waited for somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.sandbox.abyss import Clock


class Deadline:
    """Calls back when the time that was set is over, unless it is lifted before."""

    def __init__(self, clock: Clock, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._callback = callback
        self._call: Any = None

    def set(self, seconds: float) -> None:
        """Call back in so many seconds, and no earlier or later than that."""
        self.lift()
        self._call = self._clock.callLater(seconds, self._callback)

    def lift(self) -> None:
        """Do not call back."""
        if self._call is not None and self._call.active():
            self._call.cancel()
