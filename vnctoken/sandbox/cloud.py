"""Who and what is in the sandbox's cloud, and who may use what; neither XML nor network.

The rules are OpenNebula's: a session is ``user:password``, the password begins after the first colon, or that of a
server for a user, ``server:user:token``; user 0 and everybody in group 0 may do all; anyone else needs one of the
permission bits that apply to him.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from vnctoken.sandbox import servercipher
from vnctoken.sandbox.behaviour import UGLY_GUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PENDING, ACTIVE, SUSPENDED, DONE, POWEROFF = 1, 3, 5, 6, 8
"""The STATEs met in the sandbox, as OpenNebula numbers them; an LCM_STATE means something in ACTIVE only."""

VNC_PORTS = range(5900, 65536)
"""Where a VM's screen may be."""

_RUNNING = 3  # The LCM_STATEs before it are those of a VM that is still to be started.
_ADMINISTRATORS = 0
_VCENTER_HOST = "VCENTER_ESX_HOST"


class Right(IntEnum):
    """What somebody may do with a VM, as its bit among the three of owner, group or others."""

    USE = 4
    MANAGE = 2
    ADMIN = 1


@dataclass(frozen=True)
class Group:
    """A group of users."""

    id: int
    name: str


@dataclass(frozen=True)
class User:
    """Somebody with an account; those of the `core` driver log in with their password, a `server_cipher` for others."""

    id: int
    name: str
    password: str = field(repr=False)
    group: Group
    auth_driver: str = "core"
    enabled: bool = True

    @property
    def is_administrator(self) -> bool:
        """Whether he may use everything, whatever the permission bits say."""
        return self.id == 0 or self.group.id == _ADMINISTRATORS


@dataclass(frozen=True)
class Stay:
    """One history record: a VM on a host.

    `action` is OpenNebula's number of what ended the stay and `asked_by` who wanted it; 0 and None while
    nothing did. It may still be `under_way`.
    """

    host: str
    host_id: int = 0
    action: int = 0
    asked_by: User | None = None
    under_way: bool = False


@dataclass(frozen=True)
class Guest:
    """A virtual machine as oned stores it, sense or nonsense: nothing is checked.

    `mode` holds the permission bits as ``onevm chmod`` takes them (0o640: the owner may use and manage, his
    group may use). `graphics` is None where the template has no GRAPHICS. `stays` is oldest first.
    """

    id: int
    name: str
    owner: User
    graphics: Mapping[str, str] | None
    state: int = ACTIVE
    lcm_state: int = 3
    mode: int = 0o600
    stays: tuple[Stay, ...] = (Stay("dummy-host-1"),)
    user_template: Mapping[str, str] = field(default_factory=dict)
    monitoring: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_screen(self) -> bool:
        """Whether a hypervisor runs it, with a VNC screen, at a host and port that a viewer could connect to."""
        graphics = self.graphics or {}
        port = graphics.get("PORT", "")
        return bool(
            self.state == ACTIVE
            and self.lcm_state >= _RUNNING
            and graphics.get("TYPE", "").strip().upper() == "VNC"
            and re.fullmatch("[0-9]{4,5}", port)
            and int(port) in VNC_PORTS
            and re.fullmatch("[A-Za-z0-9.:-]+", self._host)
        )

    @property
    def _host(self) -> str:
        if self._is_at_vcenter:
            return self.monitoring.get(_VCENTER_HOST, "")
        return self.stays[-1].host if self.stays else ""

    @property
    def _is_at_vcenter(self) -> bool:
        return self.user_template.get("HYPERVISOR") == "vcenter"

    def with_screen_at(self, host: str, port: int) -> Guest:
        """Return the same VM, only that oned names another host and port where its screen is."""
        moved = replace(self, graphics={**(self.graphics or {}), "PORT": str(port)})
        if self._is_at_vcenter:
            return replace(moved, monitoring={**self.monitoring, _VCENTER_HOST: host})
        *before, last = self.stays
        return replace(moved, stays=(*before, replace(last, host=host)))


HOSTS: Mapping[int, str] = {0: "dummy-host-1", 1: "dummy-host-2.example.org"}
"""The hosts of the standard cloud that VMs can be moved to, by id."""


class Cloud:
    """The users, VMs and hosts of one sandbox."""

    def __init__(self, users: Iterable[User], guests: Iterable[Guest], hosts: Mapping[int, str] = HOSTS) -> None:
        self._hosts = hosts
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

    def watch(self, watcher: Callable[[Guest, Guest], object]) -> None:
        """Call with a VM as it was and as it is now, whenever one changes its state."""
        self._watchers.append(watcher)

    def guests_of(self, user: User) -> list[Guest]:
        """Return the VMs that count for the user's quota: those he owns, without the DONE ones."""
        return [guest for guest in self._guests.values() if guest.owner == user and guest.state != DONE]

    def guests_for(self, user: User) -> list[Guest]:
        """Return the VMs that the user may see, the DONE ones included."""
        return [guest for guest in self._guests.values() if self.may(user, Right.USE, guest)]

    def who_is(self, session: str, now: float) -> User | None:
        """Return the user that this session string is for; None if oned would not authenticate it.

        `now` is in seconds since the epoch: a server's login expires.
        """
        name, colon, secret = session.partition(":")
        user = self._users_by_name.get(name)
        if not colon or user is None or not user.enabled:
            return None
        if user.auth_driver == "server_cipher":
            target, _, token = secret.partition(":")
            good = servercipher.is_good(token, server_user=user.name, password=user.password, now=now)
            return self._users_by_name.get(target) if good else None
        if user.auth_driver != "core":
            return None
        return user if hmac.compare_digest(secret.encode(), user.password.encode()) else None

    @staticmethod
    def may(user: User, right: Right, guest: Guest) -> bool:
        """Whether oned lets the user do this with the VM; USE is enough to see it and its console."""
        owner_bit, group_bit, other_bit = guest.mode & right << 6, guest.mode & right << 3, guest.mode & right
        return bool(
            user.is_administrator
            or other_bit
            or (owner_bit and user == guest.owner)
            or (group_bit and user.group == guest.owner.group)
        )

    @staticmethod
    def may_read_account(user: User, account: User) -> bool:
        """Whether oned lets the user see this account."""
        return user.is_administrator or user == account


ONEADMIN_GROUP, USERS_GROUP = Group(0, "oneadmin"), Group(1, "users")

ONEADMIN = User(0, "oneadmin", "opennebula", ONEADMIN_GROUP)
SERVERADMIN = User(1, "serveradmin", "serveradmin-secret-for-tests", ONEADMIN_GROUP, auth_driver="server_cipher")
ALICE = User(2, "alice", "secret", USERS_GROUP)
BOB = User(3, "bob", "secret", USERS_GROUP)
DAVE = User(6, "dave", "secret", USERS_GROUP, enabled=False)
EVE = User(7, "eve", "with:colons:in:it", Group(100, "guests"))

_USERS = (ONEADMIN, SERVERADMIN, ALICE, BOB, DAVE, EVE)
_SECOND = Stay("dummy-host-2.example.org", host_id=1)


def _vnc(port: object, **more: str) -> dict[str, str]:
    return {"LISTEN": "0.0.0.0", "PORT": str(port), "TYPE": "VNC", **more}  # noqa: S104 - only quoted


def _at(host: str) -> tuple[Stay, ...]:
    return (Stay(host),)


_NO_PORT = {"LISTEN": "0.0.0.0", "TYPE": "VNC"}  # noqa: S104 - only quoted
_LIVE_MIGRATED = (Stay("dummy-host-1", action=2, asked_by=ONEADMIN), _SECOND)
_POWERED_OFF = (Stay("dummy-host-1", action=19, asked_by=ALICE),)
_TERMINATED = (Stay("dummy-host-1", action=27, asked_by=ALICE),)
_AT_VCENTER = _at("vcenter-cluster")
_UMLAUT = "pässwörd-東京"
_SPACE = _at("dummy-host-1 127.0.0.1")
_NEWLINE = _at("dummy-host-1\nforged: 127.0.0.1")
_IS_VCENTER, _ON_ESX = {"HYPERVISOR": "vcenter"}, {_VCENTER_HOST: "esx7.example.org"}

# Ids 0 1 3 4 6 7 9 18 20 mean here what they mean in the cloud with a real oned that the answers were learned from.
_GUESTS = (
    # Consoles that work.
    Guest(0, "vnc-plain", ALICE, _vnc(5900)),
    Guest(1, "vnc-passwd", ALICE, _vnc(5901, PASSWD="s3cr3tpw")),  # noqa: S106
    Guest(2, "vnc-lower-case", ALICE, _vnc(5902, TYPE=" vnc ")),
    Guest(5, "vnc-xml-passwd", ALICE, _vnc(5905, PASSWD="a<&>b'c")),  # noqa: S106
    Guest(13, "host-ipv6", ALICE, _vnc(5913), stays=_at("2001:db8::1")),
    Guest(19, "vcenter", ALICE, _vnc(5919), stays=_AT_VCENTER, user_template=_IS_VCENTER, monitoring=_ON_ESX),
    Guest(20, "vnc-migrated", ALICE, _vnc(5920), stays=_LIVE_MIGRATED),
    Guest(27, "größe-東京", ALICE, _vnc(5927, PASSWD=_UMLAUT)),
    Guest(28, "vnc-cdata-passwd", ALICE, _vnc(5928, PASSWD="x]]>y")),  # noqa: S106
    # Who may use them.
    Guest(9, "bobs-own", BOB, _vnc(5909)),
    Guest(16, "bobs-for-his-group", BOB, _vnc(5916), mode=0o640),
    Guest(17, "for-everybody", ONEADMIN, _vnc(5917), mode=0o604),
    Guest(29, "not-even-for-its-owner", ALICE, _vnc(5929), mode=0o000),
    # Other states.
    Guest(6, "vnc-pending", ALICE, _NO_PORT, state=PENDING, lcm_state=0, stays=()),
    Guest(7, "vnc-poweroff", ALICE, _vnc(5907), state=POWEROFF, lcm_state=0, stays=_POWERED_OFF),
    Guest(8, "vnc-suspended", ALICE, _vnc(5908), state=SUSPENDED, lcm_state=0),
    Guest(18, "vnc-done", ALICE, _NO_PORT, state=DONE, lcm_state=0, stays=_TERMINATED),
    Guest(21, "in-migrate", ALICE, _vnc(5921), lcm_state=4),
    Guest(22, "in-shutdown", ALICE, _vnc(5922), lcm_state=12),
    Guest(23, "in-unknown", ALICE, _vnc(5923), lcm_state=16),
    Guest(24, "in-hotplug", ALICE, _vnc(5924), lcm_state=17),
    Guest(25, "in-backup", ALICE, _vnc(5925), lcm_state=69),
    Guest(26, "in-prolog", ALICE, _vnc(5926), lcm_state=1),
    # No VNC, no port, no host that a console may go to.
    Guest(3, "spice", ALICE, _vnc(5903, TYPE="SPICE")),
    Guest(4, "no-graphics", ALICE, None),
    Guest(10, "port-22", ALICE, _vnc(22)),
    Guest(11, "port-missing", ALICE, _NO_PORT),
    Guest(12, "port-not-a-number", ALICE, _vnc("5900 127.0.0.1:22")),
    Guest(14, "host-with-space", ALICE, _vnc(5914), stays=_SPACE),
    Guest(15, "host-unix-socket", ALICE, _vnc(5915), stays=_at("unix_socket")),
    Guest(30, "host-with-newline", ALICE, _vnc(5930), stays=_NEWLINE),
    Guest(31, "port-too-high", ALICE, _vnc(65536)),
)


def demo_cloud() -> Cloud:
    """Return the standard cloud; the tables above say who and what is in it.

    Ids from 900 on are ordinary VMs of alice's; asking an `OnedFactory` that knows `UGLY_GUESTS` for one of
    them shows an ugly side of the network.
    """
    ugly = (
        Guest(guest_id, f"ugly-{behaviour.kind.name.lower()}", ALICE, _vnc(5900))
        for guest_id, behaviour in UGLY_GUESTS.items()
    )
    return Cloud(_USERS, (*_GUESTS, *ugly))


def demo_cloud_with_screens(address: Callable[[Guest], tuple[str, int]]) -> Cloud:
    """Return the standard cloud without the ugly VMs; `address` says at which host and port a VM's screen is.

    It is asked once for each VM that has one, in the order of the tables above.
    """
    guests = [guest.with_screen_at(*address(guest)) if guest.has_screen else guest for guest in _GUESTS]
    # Two names of this machine: a VM that moves from one to the other still has its screen.
    return Cloud(_USERS, guests, {0: "127.0.0.1", 1: "localhost"})
