"""The XML documents about accounts in oned's answers: ``<USER>``, ``<USER_POOL>`` and ``<GROUP_POOL>``.

Those about users are as oned 6.10 was seen to write them; those about groups are after its sources
(src/group/Group.cc and GroupPool.cc).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnctoken.sandbox.guests import ACTIVE
from vnctoken.sandbox.markup import attributes, cdata, element, plain
from vnctoken.sandbox.rendering import CPU, MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vnctoken.sandbox.accounts import Group, User
    from vnctoken.sandbox.guests import Guest

_USERS = 1
_SUNSTONE = {
    "DEFAULT_VIEW": "cloud",
    "GROUP_ADMIN_DEFAULT_VIEW": "groupadmin",
    "GROUP_ADMIN_VIEWS": "groupadmin,cloud",
    "VIEWS": "cloud",
}
"""What oned begins the template of the group `users` with."""


def user_xml(user: User, guests: list[Guest]) -> str:
    """Return the ``<USER>`` document of an account; `guests` are the VMs that count for its quota."""
    return element("USER", _account(user) + _quotas(guests) + element("DEFAULT_USER_QUOTAS", _quotas([])))


def user_pool_xml(users: Iterable[tuple[User, list[Guest]]]) -> str:
    """Return the ``<USER_POOL>`` document of accounts, newest first, each with the VMs that count for its quota."""
    newest_first = sorted(users, key=lambda pair: pair[0].id, reverse=True)
    accounts = (element("USER", _account(user)) + _quotas_beside(user.id, guests) for user, guests in newest_first)
    return element("USER_POOL", "".join(accounts) + element("DEFAULT_USER_QUOTAS", _quotas([])))


def group_pool_xml(groups: Iterable[tuple[Group, list[User], list[Guest]]]) -> str:
    """Return the ``<GROUP_POOL>`` document of groups, newest first, each with its members and the VMs of its quota."""
    newest_first = sorted(groups, key=lambda group: group[0].id, reverse=True)
    written = (
        element("GROUP", _group(group, members)) + _quotas_beside(group.id, guests)
        for group, members, guests in newest_first
    )
    return element("GROUP_POOL", "".join(written) + element("DEFAULT_GROUP_QUOTAS", _quotas([])))


def _account(user: User) -> str:
    return (
        plain({"ID": user.id, "GID": user.group.id})
        + element("GROUPS", _ids(group.id for group in user.groups))
        + plain({"GNAME": user.group.name, "NAME": user.name})
        + element("PASSWORD", cdata(user.stored_password))
        + element("AUTH_DRIVER", cdata(user.auth_driver))
        + plain({"ENABLED": int(user.enabled)})
        + "".join(
            # Its effective group is none in particular.
            element("LOGIN_TOKEN", plain({"TOKEN": login.token, "EXPIRATION_TIME": login.expires, "EGID": -1}))
            for login in sorted(user.login_tokens, key=lambda login: login.token)
        )
        + element("TEMPLATE", attributes({"TOKEN_PASSWORD": user.token_password} if user.token_password else {}))
    )


def _group(group: Group, members: list[User]) -> str:
    return (
        plain({"ID": group.id, "NAME": group.name})
        + element("TEMPLATE", attributes({"SUNSTONE": _SUNSTONE} if group.id == _USERS else {}))
        + element("USERS", _ids(sorted(user.id for user in members)))
        + element("ADMINS", "")
    )


def _ids(ids: Iterable[int]) -> str:
    return "".join(plain({"ID": number}) for number in ids)


def _quotas_beside(owner_id: int, guests: list[Guest]) -> str:
    return element("QUOTAS", plain({"ID": owner_id}) + _quotas(guests))


def _quotas(guests: list[Guest]) -> str:
    return (
        element("DATASTORE_QUOTA", "")
        + element("NETWORK_QUOTA", "")
        + element("VM_QUOTA", _usage(guests))
        + element("IMAGE_QUOTA", "")
    )


def _usage(guests: list[Guest]) -> str:
    if not guests:
        return ""
    running = sum(guest.state == ACTIVE for guest in guests)
    used = {
        "CPU": f"{CPU * len(guests):.2f}",
        "MEMORY": str(MEMORY * len(guests)),
        "RUNNING_CPU": f"{CPU * running:.2f}",
        "RUNNING_MEMORY": str(MEMORY * running),
        "RUNNING_VMS": str(running),
        "SYSTEM_DISK_SIZE": "0",
        "VMS": str(len(guests)),
    }
    unlimited = dict.fromkeys(used, "-1")
    return element("VM", attributes(unlimited | {f"{name}_USED": value for name, value in used.items()}))
