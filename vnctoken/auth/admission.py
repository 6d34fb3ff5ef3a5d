"""Admission: oned judges a caller, within what the service lets him have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnctoken.auth import OPENNEBULA
from vnctoken.errors import AuthorizationError, NoExistsError
from vnctoken.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Collection

    from vnctoken.auth import Caller
    from vnctoken.auth.guessing import Guessing
    from vnctoken.limits import Limits
    from vnctoken.oned import Oned
    from vnctoken.vm import VirtualMachine


class Admission:
    """Asks oned for VMs as a caller, within his limits. Identical questions that are in flight are asked once."""

    def __init__(self, oned: Oned, guessing: Guessing, groups: GroupRules, limits: Limits) -> None:
        self._oned = oned
        self._guessing = guessing
        self._groups = groups
        self._limits = limits
        self._questions: Sharing[tuple[str, int], VirtualMachine] = Sharing()

    async def vm_info(self, caller: Caller, vm_id: int) -> VirtualMachine:
        """Return a VM as the caller may see it.

        Raises what `Oned.vm_info`, `GroupRules.check`, `Guessing.judged` and `Limits` raise, and AuthorizationError if
        the caller is a VM and this is another one.
        """
        self._limits.check(caller.client, caller.user, vm_id)
        # Counted for who he has proved to be only: a stranger who uses a name takes nothing away from its owner.
        try:
            vm = await self._judged(caller, vm_id)
        except (AuthorizationError, NoExistsError):
            self._limits.refused(caller.client, caller.user)
            raise
        self._limits.admitted(caller.client, caller.user, vm_id)
        return vm

    async def _judged(self, caller: Caller, vm_id: int) -> VirtualMachine:
        if caller.vm_id not in (None, vm_id):
            raise AuthorizationError(f"VM {caller.vm_id} may have its own console only, and not that of VM {vm_id}")
        if caller.door != OPENNEBULA:
            return await self._ask(caller, vm_id)
        # Whether his session string is good is known when oned has answered.
        return await self._guessing.judged(caller.client, caller.user, lambda: self._ask(caller, vm_id))

    async def _ask(self, caller: Caller, vm_id: int) -> VirtualMachine:
        return await self._questions.share((caller.session, vm_id), lambda: self._asked(caller, vm_id))

    async def _asked(self, caller: Caller, vm_id: int) -> VirtualMachine:
        await self._groups.check(caller.session)
        return await self._oned.vm_info(caller.session, vm_id)


class GroupRules:
    """Whose groups may have consoles: none of `restricted`, and one of `allowed` if there are any. Names or ids."""

    def __init__(self, oned: Oned, *, restricted: Collection[str | int], allowed: Collection[str | int]) -> None:
        self._oned = oned
        self._restricted = frozenset(restricted)
        self._allowed = frozenset(allowed)

    async def check(self, session: str) -> None:
        """Raise AuthorizationError if the owner of `session` may have no console; else as `Oned.user` does."""
        if not (self._restricted or self._allowed):
            return
        groups = await self._groups_of(session)
        if self._restricted & groups:
            raise AuthorizationError("A group of yours may not have consoles here (:restricted_groups:)")
        if self._allowed and not self._allowed & groups:
            raise AuthorizationError("No group of yours may have consoles here (:allowed_groups:)")

    async def _groups_of(self, session: str) -> frozenset[str | int]:
        """Return the ids of a user's groups, and their names if these matter."""
        user = await self._oned.user(session)
        groups: frozenset[str | int] = frozenset([user.group, *user.groups])
        if len(user.groups) == 1 or not any(isinstance(group, str) for group in self._restricted | self._allowed):
            return groups
        names = await self._oned.groups(session)
        if not names.keys() >= user.groups:
            raise AuthorizationError(
                "oned does not tell the names of all groups of yours, so it is unknown what they may"
            )
        return groups.union(names[group] for group in user.groups)
