"""The sandbox's cloud: who may do what with its VMs; neither XML nor network.

The rules are OpenNebula's: user 0 and everybody in group 0 may do all; anyone else needs one of the permission bits
that apply to him.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from vnctoken.sandbox.accounts import Group, User
from vnctoken.sandbox.behaviour import UGLY_GUESTS
from vnctoken.sandbox.guests import ACTIVE, DONE, PENDING, POWEROFF, SUSPENDED, VNC_PORTS, Guest, Stay
from vnctoken.sandbox.population import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    EVE,
    GINA,
    GUESTS,
    HOSTS,
    ONEADMIN,
    REMY,
    SERVERADMIN,
    SERVERX509,
    USERS,
    XENIA,
    vnc,
)
from vnctoken.sandbox.sessions import session_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "ACTIVE",
    "ALICE",
    "BOB",
    "CAROL",
    "DAVE",
    "DONE",
    "EVE",
    "GINA",
    "HOSTS",
    "ONEADMIN",
    "PENDING",
    "POWEROFF",
    "REMY",
    "SERVERADMIN",
    "SERVERX509",
    "SUSPENDED",
    "VNC_PORTS",
    "XENIA",
    "Cloud",
    "Group",
    "Guest",
    "Right",
    "Stay",
    "User",
    "demo_cloud",
    "demo_cloud_with_screens",
]


class Right(IntEnum):
    """What somebody may do with a VM, as its bit among the three of owner, group or others."""

    USE = 4
    MANAGE = 2
    ADMIN = 1


class Cloud:
    """The users, VMs and hosts of one sandbox.

    `server_certificate` (PEM) is that of the server user with the auth driver `server_x509`; without it he cannot log
    in.
    """

    def __init__(
        self,
        users: Iterable[User],
        guests: Iterable[Guest],
        hosts: Mapping[int, str] = HOSTS,
        server_certificate: bytes = b"",
    ) -> None:
        self._hosts = hosts
        self._server_certificate = server_certificate
        self._watchers: list[Callable[[Guest, Guest], object]] = []
        self._users = {user.id: user for user in users}
        self._users_by_name = {user.name: user for user in self._users.values()}
        self._guests = {guest.id: guest for guest in guests}

    def user(self, user_id: int) -> User | None:
        """Return the user with this id, if there is one."""
        return self._users.get(user_id)

    def guest(self, guest_id: int) -> Guest | None:
        """Return the VM with this id, if there is one."""
        return self._guests.get(guest_id)

    def host(self, host_id: int) -> str | None:
        """Return the name of the host with this id, if there is one."""
        return self._hosts.get(host_id)

    def change(self, guest: Guest) -> None:
        """Let a VM be what it is now; `watch` tells those who want to know if it has changed its state."""
        before = self._guests[guest.id]
        self._guests[guest.id] = guest
        if (before.state, before.lcm_state) != (guest.state, guest.lcm_state):
            for watcher in self._watchers:
                watcher(before, guest)

    def change_user(self, user: User) -> None:
        """Let an account be what it is now; its name stays."""
        self._users[user.id] = self._users_by_name[user.name] = user

    def remove_user(self, user: User) -> None:
        """Let there be no such account any more."""
        del self._users[user.id], self._users_by_name[user.name]

    def watch(self, watcher: Callable[[Guest, Guest], object]) -> None:
        """Call with a VM as it was and as it is now, whenever one changes its state."""
        self._watchers.append(watcher)

    def guests_of(self, user: User) -> list[Guest]:
        """Return the VMs that count for the user's quota: those he owns, without the DONE ones."""
        return [guest for guest in self._guests.values() if guest.owner.id == user.id and guest.state != DONE]

    def guests_in(self, group: Group) -> list[Guest]:
        """Return the VMs that count for the group's quota, without the DONE ones."""
        return [guest for guest in self._guests.values() if guest.owner.group == group and guest.state != DONE]

    def guests_for(self, user: User) -> list[Guest]:
        """Return the VMs that the user may see, the DONE ones included."""
        return [guest for guest in self._guests.values() if self.may(user, Right.USE, guest)]

    def users_for(self, user: User) -> list[User]:
        """Return the accounts that the user may see."""
        return [account for account in self._users.values() if self.may_read_account(user, account)]

    def groups_for(self, user: User) -> list[Group]:
        """Return the groups that the user may see: his own, or all that somebody is in."""
        everybody = self._users.values() if user.is_administrator else [user]
        return list({group for somebody in everybody for group in somebody.groups})

    def members(self, group: Group) -> list[User]:
        """Return the users in a group, whether it is their primary one or not."""
        return [user for user in self._users.values() if group in user.groups]

    def who_is(self, session: str, now: float) -> User | None:
        """Return the user that this session string is for; None if oned would not authenticate it.

        `now` is in seconds since the epoch: a server's login expires.
        """
        return session_owner(session, self._users_by_name, now=now, server_certificate=self._server_certificate)

    @staticmethod
    def may(user: User, right: Right, guest: Guest) -> bool:
        """Whether oned lets the user do this with the VM; USE is enough to see it and its console."""
        owner_bit, group_bit, other_bit = guest.mode & right << 6, guest.mode & right << 3, guest.mode & right
        return bool(
            user.is_administrator
            or other_bit
            or (owner_bit and user.id == guest.owner.id)
            or (group_bit and guest.owner.group in user.groups)
        )

    @staticmethod
    def may_read_account(user: User, account: User) -> bool:
        """Whether oned lets the user see this account."""
        return user.is_administrator or user.id == account.id


def demo_cloud(server_certificate: bytes = b"") -> Cloud:
    """Return the standard cloud; `vnctoken.sandbox.population` says who and what is in it.

    Ids from 900 on are ordinary VMs of alice's; asking an `OnedFactory` that knows `UGLY_GUESTS` for one of
    them shows an ugly side of the network.
    """
    ugly = (
        Guest(guest_id, f"ugly-{behaviour.kind.name.lower()}", ALICE, vnc(5900))
        for guest_id, behaviour in UGLY_GUESTS.items()
    )
    return Cloud(USERS, (*GUESTS, *ugly), server_certificate=server_certificate)


def demo_cloud_with_screens(address: Callable[[Guest], tuple[str, int]], server_certificate: bytes = b"") -> Cloud:
    """Return the standard cloud without the ugly VMs; `address` says at which host and port a VM's screen is.

    It is asked once for each VM that has one, in the order in which they are listed.
    """
    guests = [guest.with_screen_at(*address(guest)) if guest.has_screen else guest for guest in GUESTS]
    # Two names of this machine: a VM that moves from one to the other still has its screen.
    return Cloud(USERS, guests, {0: "127.0.0.1", 1: "localhost"}, server_certificate)
