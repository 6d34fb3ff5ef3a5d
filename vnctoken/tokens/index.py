"""What is known of the files of a token folder, so that a token is found without reading all of them."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import KeysView

    from vnctoken.tokens.files import Stamp
    from vnctoken.tokens.lines import Entry


@dataclass(frozen=True, slots=True)
class Known:
    """A VM's file as it was at a second of the epoch."""

    stamp: Stamp
    entries: list[Entry]
    since: float

    @property
    def targets(self) -> frozenset[tuple[str, int]]:
        """The hosts and ports that its tokens lead to."""
        grants = (entry.live.grant for entry in self.entries)
        return frozenset((grant.host, grant.port) for grant in grants if grant.port)

    @property
    def first_expiry(self) -> float:
        """The second of the epoch at which the first of its tokens expires; infinite if none does."""
        return min((entry.expires for entry in self.entries if entry.expires), default=inf)


class Index:
    """The files by VM, the tokens by their digest, the VMs by host and port, and when to look for expired tokens."""

    def __init__(self) -> None:
        self._files: dict[int, Known] = {}
        self._vm_of: dict[str, int] = {}
        self._at: dict[tuple[str, int], set[int]] = {}
        # One plan for a VM; what was planned before and is later is left in the heap, and passed over.
        self._planned: dict[int, float] = {}
        self._due: list[tuple[float, int]] = []

    @property
    def vm_ids(self) -> KeysView[int]:
        """The VMs with a file."""
        return self._files.keys()

    def get(self, vm_id: int) -> Known | None:
        """Return what is known of a VM's file."""
        return self._files.get(vm_id)

    def vm_of(self, digest: str) -> int | None:
        """Return the VM in whose file a token is."""
        return self._vm_of.get(digest)

    def entry(self, digest: str) -> Entry | None:
        """Return a token as it was in its file."""
        known = self._files.get(self._vm_of.get(digest, -1))
        return None if known is None else next((one for one in known.entries if one.live.digest == digest), None)

    def holders(self, host: str, port: int) -> frozenset[int]:
        """Return the VMs with tokens that lead to a host and port."""
        return frozenset(self._at.get((host, port), ()))

    def targets(self) -> dict[int, frozenset[tuple[str, int]]]:
        """Return the VMs with tokens, and where these lead."""
        return {vm_id: known.targets for vm_id, known in self._files.items() if known.entries}

    def empty(self, since: float) -> list[int]:
        """Return the VMs whose files have had no token since a second of the epoch, or longer."""
        return [vm_id for vm_id, known in self._files.items() if not known.entries and known.since <= since]

    def remember(self, vm_id: int, known: Known) -> None:
        """Take note of a VM's file, and plan to look at it when its first token expires."""
        self.forget(vm_id)
        self._files[vm_id] = known
        for entry in known.entries:
            self._vm_of[entry.live.digest] = vm_id
        for target in known.targets:
            self._at.setdefault(target, set()).add(vm_id)
        self.plan(vm_id, known.first_expiry)

    def forget(self, vm_id: int) -> None:
        """Take note that a VM has no file."""
        known = self._files.pop(vm_id, None)
        if known is None:
            return
        for entry in known.entries:
            if self._vm_of.get(entry.live.digest) == vm_id:
                del self._vm_of[entry.live.digest]
        for target in known.targets:
            self._at[target].discard(vm_id)
            if not self._at[target]:
                del self._at[target]

    def plan(self, vm_id: int, second: float) -> None:
        """Plan to look at a VM's file at a second of the epoch, or earlier if that is planned already."""
        if second < self._planned.get(vm_id, inf):
            self._planned[vm_id] = second
            heappush(self._due, (second, vm_id))

    @property
    def next_look(self) -> float:
        """The second of the epoch for which a look is planned; infinite if none is."""
        return self._due[0][0] if self._due else inf

    def take_due(self, now: float) -> int | None:
        """Return a VM whose file is to be looked at by now, which is no longer planned then; None if there is none."""
        while self._due and self._due[0][0] <= now:
            second, vm_id = heappop(self._due)
            if self._planned.get(vm_id) == second:
                del self._planned[vm_id]
                return vm_id
        return None
