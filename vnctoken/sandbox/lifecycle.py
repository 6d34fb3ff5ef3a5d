"""What becomes of a VM when somebody acts on it: the states that it goes through, and what its history says then.

The names and numbers are those of OpenNebula 6.10, the states in between those of its drivers' work. Here nothing
takes time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyone

from vnctoken.sandbox.cloud import ACTIVE, DONE, Stay
from vnctoken.vm import LCM_STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.sandbox.cloud import Guest, User

RESUME, MIGRATE, LIVE_MIGRATE = "resume", "migrate", "live-migrate"

ACTIONS: Mapping[str, int] = {
    "suspend": 10,
    RESUME: 11,
    "poweroff": 19,
    "poweroff-hard": 20,
    "terminate": 27,
    "terminate-hard": 28,
}
"""What ``one.vm.action`` can do here, and the numbers that the history has for it."""

_MIGRATIONS: Mapping[str, int] = {MIGRATE: 1, LIVE_MIGRATE: 2}

# For an action and the state it begins in: the states after it, the last one to stay.
_WAYS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("suspend", "RUNNING"): ("SAVE_SUSPEND", "SUSPENDED"),
    ("resume", "SUSPENDED"): ("BOOT_SUSPENDED", "RUNNING"),
    ("resume", "POWEROFF"): ("BOOT_POWEROFF", "RUNNING"),
    ("poweroff", "RUNNING"): ("SHUTDOWN_POWEROFF", "POWEROFF"),
    ("poweroff-hard", "RUNNING"): ("SHUTDOWN_POWEROFF", "POWEROFF"),
    ("terminate", "RUNNING"): ("SHUTDOWN", "EPILOG", "DONE"),
    ("terminate", "SUSPENDED"): ("EPILOG", "DONE"),
    ("terminate", "POWEROFF"): ("EPILOG", "DONE"),
    ("terminate", "PENDING"): ("DONE",),
    ("terminate-hard", "RUNNING"): ("CANCEL", "EPILOG", "DONE"),
    ("terminate-hard", "SUSPENDED"): ("EPILOG", "DONE"),
    ("terminate-hard", "POWEROFF"): ("EPILOG", "DONE"),
    ("terminate-hard", "PENDING"): ("DONE",),
    (LIVE_MIGRATE, "RUNNING"): ("MIGRATE", "RUNNING"),
    (MIGRATE, "RUNNING"): ("SAVE_MIGRATE", "PROLOG_MIGRATE", "BOOT_MIGRATE", "RUNNING"),
    (MIGRATE, "SUSPENDED"): ("PROLOG_MIGRATE_SUSPEND", "SUSPENDED"),
    (MIGRATE, "POWEROFF"): ("PROLOG_MIGRATE_POWEROFF", "POWEROFF"),
}
_VM_STATES = {state.name: int(state) for state in pyone.VM_STATE}
_VM_STATE_NAMES = {number: name for name, number in _VM_STATES.items()}
_LCM_STATE_NAMES = {number: name for name, number in LCM_STATES.items()}


class WrongStateError(Exception):
    """Raised if a VM's state does not allow an action; the text is the name of the state."""


def state_names(guest: Guest) -> tuple[str, str]:
    """Return the names of a VM's STATE and LCM_STATE."""
    lcm_state = guest.lcm_state if guest.state == ACTIVE else 0
    return _VM_STATE_NAMES[guest.state], _LCM_STATE_NAMES[lcm_state]


def acted_on(guest: Guest, action: str, user: User) -> list[Guest]:
    """Return what a VM becomes, step by step, when a user has one of the `ACTIONS` done.

    Raises WrongStateError.
    """
    names = _way(guest, action)
    if not guest.stays:
        return _walked(guest, names, (), ())
    *before, last = guest.stays
    number = ACTIONS[action]
    if action == RESUME:
        back = Stay(last.host, last.host_id)
        booting = replace(back, action=number, asked_by=user, under_way=True)
        return _walked(guest, names, (*guest.stays, booting), (*guest.stays, back))
    ended = replace(last, action=number, asked_by=user)
    return _walked(guest, names, (*before, replace(ended, under_way=True)), (*before, ended))


def migrated(guest: Guest, action: str, host: tuple[int, str], user: User) -> list[Guest]:
    """Return what a VM becomes, step by step, when a user has it moved to a host, MIGRATE or LIVE_MIGRATE.

    Raises WrongStateError.
    """
    names = _way(guest, action)
    *before, last = guest.stays
    left = replace(last, action=_MIGRATIONS[action], asked_by=user)
    host_id, name = host
    there = Stay(name, host_id)
    return _walked(guest, names, (*before, replace(left, under_way=True), there), (*before, left, there))


def _way(guest: Guest, action: str) -> tuple[str, ...]:
    state, lcm_state = state_names(guest)
    name = lcm_state if guest.state == ACTIVE else state
    if (action, name) not in _WAYS:
        raise WrongStateError(name)
    return _WAYS[action, name]


def _walked(
    guest: Guest, names: tuple[str, ...], under_way: tuple[Stay, ...], at_the_end: tuple[Stay, ...]
) -> list[Guest]:
    *passing, last = names
    steps = [replace(_in_state(guest, name), stays=under_way) for name in passing]
    return [*steps, replace(_in_state(guest, last), stays=at_the_end)]


def _in_state(guest: Guest, name: str) -> Guest:
    if name in LCM_STATES:
        return replace(guest, state=ACTIVE, lcm_state=LCM_STATES[name])
    graphics = guest.graphics
    if _VM_STATES[name] == DONE and graphics is not None:
        # The port is somebody else's now.
        graphics = {key: value for key, value in graphics.items() if key != "PORT"}
    return replace(guest, state=_VM_STATES[name], lcm_state=0, graphics=graphics)
