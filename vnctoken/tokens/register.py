"""The live tokens that this process knows: whose they are, of which VM, and when they end."""

from __future__ import annotations

from contextlib import contextmanager
from heapq import heapify, heappop, heappush, nsmallest
from math import inf
from typing import TYPE_CHECKING, TypeVar

from vnctoken.countdowns import client_key, user_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vnctoken.tokens import Grant, LiveToken

    _Key = TypeVar("_Key")
    _Otherwise = TypeVar("_Otherwise")
    _Entry = tuple[float, int, str]
    """When, the number of the addition, and the token's digest."""

# A heap keeps what is gone already until it comes up; so many of these are too few to tidy it for.
_FEW = 64


class Register:
    """Keeps live tokens. Users and addresses are taken for the same as in `vnctoken.countdowns`."""

    def __init__(self) -> None:
        self._tokens: dict[str, LiveToken] = {}
        self._by_vm: dict[int, dict[str, LiveToken]] = {}
        self._by_user: dict[bytes, dict[str, LiveToken]] = {}
        self._by_client: dict[bytes, dict[str, LiveToken]] = {}
        # A token may leave and come back while entries of the time before are still in the heaps.
        self._additions: dict[str, int] = {}
        self._added = 0
        self._ends: list[_Entry] = []
        self._begins: list[_Entry] = []
        self._coming: dict[object, Grant] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[LiveToken]:
        """Return the tokens, in the order in which they became known."""
        return iter(self._tokens.values())

    @property
    def coming(self) -> Collection[Grant]:
        """What is being issued: it counts as no live token yet."""
        return self._coming.values()

    @contextmanager
    def expecting(self, grant: Grant) -> Iterator[None]:
        """Have a grant be `coming` for the time of a block."""
        issue = object()
        self._coming[issue] = grant
        try:
            yield
        finally:
            del self._coming[issue]

    @property
    def vm_ids(self) -> frozenset[int]:
        """The VMs with tokens."""
        return frozenset(self._by_vm)

    @property
    def next_expiry(self) -> float:
        """The second of the epoch at which the first token ends; infinite if none does."""
        return self._first(self._ends, inf)

    def next_expiries(self, count: int) -> list[float]:
        """Return the seconds of the epoch at which the first so many tokens end; infinite for those that do not."""
        if count == 1:
            return [self.next_expiry]
        ends = nsmallest(count, (entry[0] for entry in self._ends if self._is_current(entry)))
        return ends + [inf] * (count - len(ends))

    def oldest(self) -> float | None:
        """Return the second of the epoch at which the oldest token was issued, None if there is no token."""
        return self._first(self._begins, None)

    def add(self, live: LiveToken) -> None:
        """Take note of a token; one that is known stays as it is."""
        if live.digest in self._tokens:
            return
        grant = live.grant
        self._tokens[live.digest] = live
        self._by_vm.setdefault(grant.vm_id, {})[live.digest] = live
        if grant.user:
            self._by_user.setdefault(user_key(grant.user), {})[live.digest] = live
        if grant.caller:
            self._by_client.setdefault(client_key(grant.caller), {})[live.digest] = live
        self._added += 1
        self._additions[live.digest] = self._added
        if grant.expires:
            heappush(self._ends, (grant.expires, self._added, live.digest))
        heappush(self._begins, (grant.issued, self._added, live.digest))

    def remove(self, vm_id: int, digests: frozenset[str] | None = None) -> list[LiveToken]:
        """Strike out a VM's tokens, all or those with a digest; return them, the oldest first."""
        gone = [live for live in self.of_vm(vm_id) if digests is None or live.digest in digests]
        for live in gone:
            self._strike_out(live)
        self._tidy()
        return gone

    def expired(self, now: float, at_most: int | None = None) -> list[LiveToken]:
        """Strike out the tokens whose time is over, or so many of them; return them, the first to end first."""
        gone: list[LiveToken] = []
        while self.next_expiry <= now and len(gone) != at_most:
            live = self._tokens[self._ends[0][2]]
            self._strike_out(live)
            gone.append(live)
        self._tidy()
        return gone

    def of_vm(self, vm_id: int) -> list[LiveToken]:
        """Return a VM's tokens, the oldest first."""
        return _by_age(self._by_vm.get(vm_id))

    def of_user(self, user: str) -> list[LiveToken]:
        """Return a user's tokens, the oldest first."""
        return _by_age(self._by_user.get(user_key(user)))

    def of_client(self, client: str) -> list[LiveToken]:
        """Return the tokens that were asked for from an address, the oldest first."""
        return _by_age(self._by_client.get(client_key(client)))

    def count_of_vm(self, vm_id: int) -> int:
        """Return how many tokens a VM has."""
        return len(self._by_vm.get(vm_id, ()))

    def count_of_user(self, user: str) -> int:
        """Return how many tokens a user has."""
        return len(self._by_user.get(user_key(user), ()))

    def count_of_client(self, client: str) -> int:
        """Return how many tokens were asked for from an address."""
        return len(self._by_client.get(client_key(client), ()))

    def _first(self, heap: list[_Entry], otherwise: _Otherwise) -> float | _Otherwise:
        while heap and not self._is_current(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else otherwise

    def _is_current(self, entry: _Entry) -> bool:
        _, addition, digest = entry
        return self._additions.get(digest) == addition

    def _strike_out(self, live: LiveToken) -> None:
        del self._tokens[live.digest], self._additions[live.digest]
        _leave(self._by_vm, live.grant.vm_id, live)
        if live.grant.user:
            _leave(self._by_user, user_key(live.grant.user), live)
        if live.grant.caller:
            _leave(self._by_client, client_key(live.grant.caller), live)

    def _tidy(self) -> None:
        for heap in (self._ends, self._begins):
            if len(heap) > 2 * len(self._tokens) + _FEW:
                heap[:] = [entry for entry in heap if self._is_current(entry)]
                heapify(heap)


def _by_age(tokens: dict[str, LiveToken] | None) -> list[LiveToken]:
    return sorted(tokens.values(), key=lambda live: live.grant.issued) if tokens else []


def _leave(tokens: dict[_Key, dict[str, LiveToken]], key: _Key, live: LiveToken) -> None:
    del tokens[key][live.digest]
    if not tokens[key]:
        del tokens[key]
