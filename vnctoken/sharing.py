"""One question for all who want to know the same at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

_Key = TypeVar("_Key", bound="Hashable")
_Result = TypeVar("_Result")


class Sharing(Generic[_Key, _Result]):
    """Lets callers with equal keys share one question while it is in flight; nothing is kept of it afterwards.

    Keys may be secrets: they are compared, and never shown.
    """

    def __init__(self) -> None:
        self._in_flight: dict[_Key, Waiters[_Result]] = {}

    async def share(self, key: _Key, ask: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return, or raise, what comes of the question that is in flight for `key`, or else of `ask`.

        Who is cancelled leaves the others alone; with the last one the question is cancelled.
        """
        waiters = self._in_flight.get(key)
        return await (self._begin(key, ask) if waiters is None else waiters.join())

    def _begin(self, key: _Key, ask: Callable[[], Awaitable[_Result]]) -> Deferred[_Result]:
        async def answer() -> _Result:
            return await ask()

        def tell(outcome: _Result | Failure) -> None:
            self._forget(key, waiters)
            waiters.tell(outcome)

        def give_up() -> None:
            # Whoever comes now asks anew, however long the old question takes to end.
            self._forget(key, waiters)
            asking.cancel()

        waiters = self._in_flight[key] = Waiters(give_up)
        waiter = waiters.join()
        asking = Deferred.fromCoroutine(answer())
        asking.addBoth(tell)
        return waiter

    def _forget(self, key: _Key, waiters: Waiters[_Result]) -> None:
        if self._in_flight.get(key) is waiters:
            del self._in_flight[key]


class Waiters(Generic[_Result]):
    """Those who wait for the same, in the order in which they came; `deserted` is called when the last one has gone."""

    def __init__(self, deserted: Callable[[], None] | None = None) -> None:
        self._waiting: dict[Deferred[_Result], None] = {}
        self._deserted = deserted

    def join(self) -> Deferred[_Result]:
        """Return what the next outcome told will be. Cancelled, it leaves the others alone."""
        waiter: Deferred[_Result] = Deferred(self._leave)
        self._waiting[waiter] = None
        return waiter

    def tell(self, outcome: _Result | Failure) -> None:
        """Give an outcome to all who wait now; who joins meanwhile waits for the next one."""
        for waiter in [*self._waiting]:
            # One who is told may cancel another.
            if waiter not in self._waiting:
                continue
            del self._waiting[waiter]
            if isinstance(outcome, Failure):
                waiter.errback(outcome)
            else:
                waiter.callback(outcome)

    def _leave(self, waiter: Deferred[_Result]) -> None:
        del self._waiting[waiter]
        if not self._waiting and self._deserted is not None:
            self._deserted()
