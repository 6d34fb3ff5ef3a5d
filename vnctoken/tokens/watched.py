"""A token store that is watched: how long it takes, which tokens live, and when their time is over.

The store knows what lives; the register knows what of it this process has seen: all that it has issued, and of what
was there before, or came by others (another front-end, Sunstone), the tokens of VMs that it had none of.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from vnctoken.decisions import about, note
from vnctoken.errors import TokenStoreError
from vnctoken.tokens import LiveToken, digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.decisions import Audit
    from vnctoken.measures import Measures
    from vnctoken.tokens import Grant, TokenStore
    from vnctoken.tokens.register import Register

RECONCILE_SECONDS = 60.0
"""How often the register is held against the store; what is not done in this time goes on in the next."""

OTHER_CLOCK_SECONDS = 5.0
"""A token that the store has no longer so shortly before its end has ended there: Redis goes by its own clock."""

_Answer = TypeVar("_Answer")

# So many at once, as calls are waiting.
_EXPIRIES_AT_ONCE = 50
_VMS_AT_ONCE = 20


class WatchedStore:
    """Passes everything on to a store (a TokenStore), times it, and keeps the register right.

    Of what ends by itself it tells the audit log: a token's time is over, or the store has dropped it for newer ones of
    its VM (`tokens_per_vm`, as the store has it). The clock runs the timers; `now` tells the second of the epoch.
    """

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        store: TokenStore,
        register: Register,
        clock: Any,
        now: Callable[[], float],
        *,
        tokens_per_vm: int,
        measures: Measures,
        audit: Audit,
    ) -> None:
        self.revocable = store.revocable
        self._store = store
        self._register = register
        self._clock = clock
        self._now = now
        self._tokens_per_vm = tokens_per_vm
        self._measures = measures
        self._audit = audit
        # The second of the epoch for which the timer is set.
        self._due = inf
        self._ending: Any = None
        self._next_round: Any = None
        self._round: Deferred[None] | None = None

    def prepare(self) -> list[str]:
        """Look whether the store can be used; return warnings. Raises ConfigError."""
        return self._store.prepare()

    def start(self) -> None:
        """Watch from now on, and learn in the background what the store holds already. Raises ConfigError."""
        self._store.start()
        if self.revocable:
            self._begin_round()

    async def check(self) -> None:
        """Look whether a token could be written now. Raises TokenStoreError."""
        await self._store.check()

    async def issue(self, grant: Grant) -> str:
        """Return a new token for a grant, and take note of it. Raises as the store does."""
        return await self._timed(self._issue(grant))

    async def live(self, vm_id: int) -> list[LiveToken]:
        """Return a VM's live tokens, which are all that the register then has of it."""
        return await self._timed(self._live(vm_id))

    async def revoke(self, vm_id: int, digests: frozenset[str] | None = None) -> int:
        """Take back a VM's tokens, all or those with a digest; return how many."""
        count = await self._timed(self._store.revoke(vm_id, digests))
        self._register.remove(vm_id, digests)
        return count

    async def find(self, token: str) -> LiveToken | None:
        """Return what a token opens."""
        return await self._timed(self._store.find(token))

    async def use(self, token: str, reuse_window: float) -> LiveToken | None:
        """Return what a token opens, and take note that it was used."""
        return await self._timed(self._store.use(token, reuse_window))

    async def holders(self, host: str, port: int) -> frozenset[int]:
        """Return the VMs with tokens that lead to a host and port."""
        return await self._timed(self._store.holders(host, port))

    async def targets(self) -> dict[int, frozenset[tuple[str, int]]]:
        """Return every VM with live tokens, and the hosts and ports that these lead to."""
        return await self._timed(self._store.targets())

    async def close(self) -> None:
        """Stop watching, and let go of the store."""
        for timer in (self._ending, self._next_round):
            if timer is not None and timer.active():
                timer.cancel()
        if self._round is not None:
            self._round.cancel()
        await self._store.close()

    async def reconcile(self) -> None:
        """Strike out the tokens of VMs that have none in the store, and learn those of VMs that had none here.

        Raises TokenStoreError.
        """
        before = frozenset(live.digest for live in self._register)
        held = await self._store.targets()
        for vm_id in self._register.vm_ids - held.keys():
            self._strike_out(vm_id, before)
        for number, vm_id in enumerate(held.keys() - self._register.vm_ids, 1):
            await self._live(vm_id)
            if number % _VMS_AT_ONCE == 0:
                await deferLater(self._clock, 0, lambda: None)

    async def _timed(self, work: Awaitable[_Answer]) -> _Answer:
        began = self._clock.seconds()
        try:
            return await work
        finally:
            self._measures.spent("store", self._clock.seconds() - began)

    async def _issue(self, grant: Grant) -> str:
        with self._register.expecting(grant):
            token = await self._store.issue(grant)
            self._register.add(LiveToken(digest(token), grant))
        self._wake()
        if self.revocable and self._register.count_of_vm(grant.vm_id) > self._tokens_per_vm:
            await self._note_dropped(grant.vm_id)
        return token

    async def _live(self, vm_id: int) -> list[LiveToken]:
        # What is issued while the store answers is not in its answer.
        before = self._digests(vm_id)
        found = await self._store.live(vm_id)
        self._strike_out(vm_id, before.difference(live.digest for live in found))
        for live in found:
            if not live.grant.expires or live.grant.expires > self._now():
                self._register.add(live)
        self._wake()
        return found

    async def _note_dropped(self, vm_id: int) -> None:
        before = self._digests(vm_id)
        try:
            found = await self._store.live(vm_id)
        except TokenStoreError:
            # The token is issued all the same.
            return
        gone = self._strike_out(vm_id, before.difference(live.digest for live in found))
        if len(found) >= self._tokens_per_vm:
            for live in gone:
                note(self._audit, about(live, "revoked", "tokens_per_vm"))

    def _digests(self, vm_id: int) -> frozenset[str]:
        return frozenset(live.digest for live in self._register.of_vm(vm_id))

    def _strike_out(self, vm_id: int, digests: frozenset[str]) -> list[LiveToken]:
        """Strike out what the store has no longer, but leave it to its time if that is over at any moment."""
        soon = self._now() + OTHER_CLOCK_SECONDS
        doomed = [live for live in self._register.of_vm(vm_id) if not live.grant.expires or live.grant.expires > soon]
        return self._register.remove(vm_id, digests.intersection(live.digest for live in doomed))

    def _wake(self) -> None:
        """Let the timer go off when the first token ends."""
        first = self._register.next_expiry
        if first < self._due:
            if self._ending is not None and self._ending.active():
                self._ending.cancel()
            self._due = first
            self._ending = self._clock.callLater(max(first - self._now(), 0.0), self._end)

    def _end(self) -> None:
        self._due = inf
        for live in self._register.expired(self._now(), _EXPIRIES_AT_ONCE):
            note(self._audit, about(live, "expired", ""))
        self._wake()

    def _begin_round(self) -> None:
        self._next_round = self._clock.callLater(RECONCILE_SECONDS, self._begin_round)
        if self._round is not None:
            self._round.cancel()
        self._round = Deferred.fromCoroutine(self._go_round())

    async def _go_round(self) -> None:
        try:
            await self.reconcile()
        except (CancelledError, TokenStoreError):
            # What was learnt stays; who needs the store tells of its troubles.
            return
        except Exception:  # noqa: BLE001 (one bad round must not be the last)
            self._log.failure("the register of live tokens could not be held against the store")
