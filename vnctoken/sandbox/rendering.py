"""The XML documents that oned keeps inside its answers: ``<VM>``, ``<VM_POOL>`` and ``<USER>``.

Element order, CDATA or not, and which elements are empty or missing, are as oned 6.10 writes them.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from vnctoken.sandbox.cloud import ACTIVE, DONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vnctoken.sandbox.cloud import Guest, User

_THEN = 1_790_000_000
"""When everything in the sandbox happened, in seconds since the epoch: the same question has the same answer."""

_REQUEST_ID = 4880
_CPU, _MEMORY = 0.1, 64
_MONITORING = {
    "CPU": "0",
    "DISKRDBYTES": "785",
    "DISKRDIOPS": "486",
    "DISKWRBYTES": "605",
    "DISKWRIOPS": "577",
    "MEMORY": "31457",
    "NETRX": "6795",
    "NETTX": "6645",
    "TIMESTAMP": str(_THEN),
}
_NO_QUOTAS = (
    "<DATASTORE_QUOTA></DATASTORE_QUOTA><NETWORK_QUOTA></NETWORK_QUOTA>"
    "<VM_QUOTA>{}</VM_QUOTA><IMAGE_QUOTA></IMAGE_QUOTA>"
)


def _element(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


def _plain(values: Mapping[str, object]) -> str:
    return "".join(_element(name, escape(str(value))) for name, value in values.items())


def _cdata(text: str) -> str:
    # A section ends at the first ]]>, so one in the value is spread over two sections.
    return "<![CDATA[" + text.replace("]]>", "]]]]><![CDATA[>") + "]]>"


def _attributes(values: Mapping[str, str | Mapping[str, str]]) -> str:
    """Return a template as oned writes one: sorted by name, nested once at most."""
    return "".join(
        _element(name, _cdata(value) if isinstance(value, str) else _attributes(value))
        for name, value in sorted(values.items())
    )


def guest_xml(guest: Guest, *, before: Guest | None = None, monitored: bool = True) -> str:
    """Return the ``<VM>`` document of a VM; `before` is what it was when its state has just changed.

    Only ``one.vm.info`` has the values of the monitoring.
    """
    return _in_full(guest, guest if before is None else before, _history(guest), monitored=monitored)


def _in_full(guest: Guest, before: Guest, history: str, *, monitored: bool) -> str:
    monitoring = {**_MONITORING, "ID": str(guest.id), **guest.monitoring} if monitored else {}
    return _element(
        "VM",
        _who_and_what(guest)
        + _element("PERMISSIONS", _permissions(guest.mode))
        + _plain(
            {
                "LAST_POLL": _THEN if monitored else 0,
                "STATE": guest.state,
                "LCM_STATE": guest.lcm_state,
                "PREV_STATE": before.state,
                "PREV_LCM_STATE": before.lcm_state,
                "RESCHED": 0,
            }
        )
        + _times(guest)
        + _element("MONITORING", _attributes(monitoring))
        + "<SCHED_ACTIONS></SCHED_ACTIONS>"
        + _element("TEMPLATE", _template(guest))
        + _element("USER_TEMPLATE", _attributes(guest.user_template))
        + history
        + "<BACKUPS><BACKUP_CONFIG/><BACKUP_IDS></BACKUP_IDS></BACKUPS>",
    )


def _who_and_what(guest: Guest) -> str:
    return _plain(
        {
            "ID": guest.id,
            "UID": guest.owner.id,
            "GID": guest.owner.group.id,
            "UNAME": guest.owner.name,
            "GNAME": guest.owner.group.name,
            "NAME": guest.name,
        }
    )


def _times(guest: Guest) -> str:
    first_host = guest.stays[0].host if guest.stays else None
    return _plain(
        {
            "STIME": _THEN,
            "ETIME": _THEN if guest.state == DONE else 0,
            "DEPLOY_ID": f"{first_host}:{guest.name}:dummy" if first_host else "",
        }
    )


def pool_xml(guests: Iterable[Guest], *, extended: bool = False) -> str:
    """Return the ``<VM_POOL>`` document of VMs, newest first.

    They are in a short form, or extended with nearly all that a VM has, but always with the last history record alone.
    """
    newest_first = sorted(guests, key=lambda guest: guest.id, reverse=True)
    return _element("VM_POOL", "".join(_extended(guest) if extended else _in_short(guest) for guest in newest_first))


def _extended(guest: Guest) -> str:
    return _in_full(guest, guest, _history(guest, last_alone=True), monitored=False)


def _in_short(guest: Guest) -> str:
    graphics = "" if guest.graphics is None else _attributes({"GRAPHICS": guest.graphics})
    return _element(
        "VM",
        _who_and_what(guest)
        + _plain({"LAST_POLL": 0, "STATE": guest.state, "LCM_STATE": guest.lcm_state, "RESCHED": 0})
        + _times(guest)
        + _element("TEMPLATE", _plain({"CPU": _CPU, "MEMORY": _MEMORY, "VCPU": ""}) + graphics)
        + "<MONITORING/>"
        # Of what is in it, oned would repeat some attributes for Sunstone and the scheduler, none of which is met here.
        + ("<USER_TEMPLATE></USER_TEMPLATE>" if guest.user_template else "<USER_TEMPLATE/>")
        + _last_stay_in_short(guest),
    )


def _last_stay_in_short(guest: Guest) -> str:
    if not guest.stays:
        return "<HISTORY_RECORDS/>"
    stay = guest.stays[-1]
    record = (
        _plain({"OID": guest.id, "SEQ": len(guest.stays) - 1})
        + _attributes({"HOSTNAME": stay.host})
        + _plain({"HID": stay.host_id, "CID": 0, "DS_ID": 100})
        + _attributes({"VM_MAD": "dummy"})
        + _attributes({"TM_MAD": "dummy"})
        + _attributes({"ACTION": str(stay.action)})
    )
    return _element("HISTORY_RECORDS", _element("HISTORY", record))


def _permissions(mode: int) -> str:
    bits = {
        f"{who}_{what}": mode >> shift & 1
        for who, first in (("OWNER", 8), ("GROUP", 5), ("OTHER", 2))
        for what, shift in (("U", first), ("M", first - 1), ("A", first - 2))
    }
    return _plain(bits)


def _template(guest: Guest) -> str:
    template: dict[str, str | Mapping[str, str]] = {
        "AUTOMATIC_REQUIREMENTS": "!(PUBLIC_CLOUD = YES) & !(PIN_POLICY = PINNED)",
        "CPU": str(_CPU),
        "MEMORY": str(_MEMORY),
        "OS": {"UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, str(guest.id)))},
        "TEMPLATE_ID": str(guest.id),
        "VMID": str(guest.id),
    }
    if guest.graphics is not None:
        template["GRAPHICS"] = guest.graphics
    if guest.stays:
        template["TM_MAD_SYSTEM"] = "dummy"
    return _attributes(template)


def _history(guest: Guest, *, last_alone: bool = False) -> str:
    if not guest.stays:
        return "<HISTORY_RECORDS/>"
    first = len(guest.stays) - 1 if last_alone else 0
    records = [_stay(guest, number) for number in range(first, len(guest.stays))]
    return _element("HISTORY_RECORDS", "".join(records))


def _stay(guest: Guest, number: int) -> str:
    stay = guest.stays[number]
    is_last = number == len(guest.stays) - 1
    done = guest.state == DONE
    left = done or not (is_last or stay.under_way)
    arrived = number == 0 or not guest.stays[number - 1].under_way
    # Only the first host sees a prolog: a live migration brings the disks along.
    prolog = _THEN if number == 0 else 0
    epilog = _THEN if done and is_last else 0
    asked_by = stay.asked_by
    return _element(
        "HISTORY",
        _plain(
            {
                "OID": guest.id,
                "SEQ": number,
                "HOSTNAME": stay.host,
                "HID": stay.host_id,
                "CID": 0,
                "STIME": _THEN,
                "ETIME": _THEN if left else 0,
            }
        )
        + _attributes({"VM_MAD": "dummy"})
        + _attributes({"TM_MAD": "dummy"})
        + _plain(
            {
                "DS_ID": 100,
                "PSTIME": prolog,
                "PETIME": prolog,
                "RSTIME": _THEN if arrived else 0,
                "RETIME": _THEN if stay.action and not stay.under_way else 0,
                "ESTIME": epilog,
                "EETIME": epilog,
                "ACTION": stay.action,
                "UID": asked_by.id if asked_by else -1,
                "GID": asked_by.group.id if asked_by else -1,
                "REQUEST_ID": _REQUEST_ID if asked_by else -1,
            }
        ),
    )


def user_xml(user: User, guests: list[Guest]) -> str:
    """Return the ``<USER>`` document of an account; `guests` are the VMs that count for its quota."""
    return _element(
        "USER",
        _plain({"ID": user.id, "GID": user.group.id})
        + _element("GROUPS", _plain({"ID": user.group.id}))
        + _plain({"GNAME": user.group.name, "NAME": user.name})
        + _element("PASSWORD", _cdata(_sha256(user.password)))
        + _element("AUTH_DRIVER", _cdata(user.auth_driver))
        + _plain({"ENABLED": int(user.enabled)})
        + _element("TEMPLATE", _attributes({"TOKEN_PASSWORD": _sha256(f"token of {user.name}")}))
        + _NO_QUOTAS.format(_usage(guests))
        + _element("DEFAULT_USER_QUOTAS", _NO_QUOTAS.format("")),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _usage(guests: list[Guest]) -> str:
    if not guests:
        return ""
    running = sum(guest.state == ACTIVE for guest in guests)
    used = {
        "CPU": f"{_CPU * len(guests):.2f}",
        "MEMORY": str(_MEMORY * len(guests)),
        "RUNNING_CPU": f"{_CPU * running:.2f}",
        "RUNNING_MEMORY": str(_MEMORY * running),
        "RUNNING_VMS": str(running),
        "SYSTEM_DISK_SIZE": "0",
        "VMS": str(len(guests)),
    }
    unlimited = dict.fromkeys(used, "-1")
    return _element("VM", _attributes(unlimited | {f"{name}_USED": value for name, value in used.items()}))
