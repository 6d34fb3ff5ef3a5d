"""The XML documents about VMs that oned keeps inside its answers: ``<VM>`` and ``<VM_POOL>``.

Element order, CDATA or not, and which elements are empty or missing, are as oned 6.10 writes them.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from vnctoken.sandbox.guests import DONE
from vnctoken.sandbox.markup import attributes, element, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vnctoken.sandbox.guests import Guest

_REQUEST_ID = 4880
_ONEGATE = "http://169.254.16.9:5030"
CPU, MEMORY = 0.1, 64
"""What every VM has: a share of a processor, and megabytes."""

_MONITORING = {
    "CPU": "0",
    "DISKRDBYTES": "785",
    "DISKRDIOPS": "486",
    "DISKWRBYTES": "605",
    "DISKWRIOPS": "577",
    "MEMORY": "31457",
    "NETRX": "6795",
    "NETTX": "6645",
}


def guest_xml(guest: Guest, *, before: Guest | None = None, monitored: bool = True) -> str:
    """Return the ``<VM>`` document of a VM; `before` is what it was when its state has just changed.

    Only ``one.vm.info`` has the values of the monitoring.
    """
    return _in_full(guest, guest if before is None else before, _history(guest), monitored=monitored)


def _in_full(guest: Guest, before: Guest, history: str, *, monitored: bool) -> str:
    own = {"ID": str(guest.id), "TIMESTAMP": str(guest.started)}
    monitoring = {**_MONITORING, **own, **guest.monitoring} if monitored else {}
    return element(
        "VM",
        _who_and_what(guest)
        + element("PERMISSIONS", _permissions(guest.mode))
        + plain(
            {
                "LAST_POLL": guest.started if monitored else 0,
                "STATE": guest.state,
                "LCM_STATE": guest.lcm_state,
                "PREV_STATE": before.state,
                "PREV_LCM_STATE": before.lcm_state,
                "RESCHED": 0,
            }
        )
        + _times(guest)
        + element("MONITORING", attributes(monitoring))
        + "<SCHED_ACTIONS></SCHED_ACTIONS>"
        + element("TEMPLATE", _template(guest))
        + element("USER_TEMPLATE", attributes(guest.user_template))
        + history
        + "<BACKUPS><BACKUP_CONFIG/><BACKUP_IDS></BACKUP_IDS></BACKUPS>",
    )


def _who_and_what(guest: Guest) -> str:
    return plain(
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
    return plain(
        {
            "STIME": guest.started,
            "ETIME": guest.started if guest.state == DONE else 0,
            "DEPLOY_ID": f"{first_host}:{guest.name}:dummy" if first_host else "",
        }
    )


def pool_xml(guests: Iterable[Guest], *, extended: bool = False) -> str:
    """Return the ``<VM_POOL>`` document of VMs, newest first.

    They are in a short form, or extended with nearly all that a VM has, but always with the last history record alone.
    """
    newest_first = sorted(guests, key=lambda guest: guest.id, reverse=True)
    return element("VM_POOL", "".join(_extended(guest) if extended else _in_short(guest) for guest in newest_first))


def _extended(guest: Guest) -> str:
    return _in_full(guest, guest, _history(guest, last_alone=True), monitored=False)


def _in_short(guest: Guest) -> str:
    graphics = "" if guest.graphics is None else attributes({"GRAPHICS": guest.graphics})
    return element(
        "VM",
        _who_and_what(guest)
        + plain({"LAST_POLL": 0, "STATE": guest.state, "LCM_STATE": guest.lcm_state, "RESCHED": 0})
        + _times(guest)
        + element("TEMPLATE", plain({"CPU": CPU, "MEMORY": MEMORY, "VCPU": ""}) + graphics)
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
        plain({"OID": guest.id, "SEQ": len(guest.stays) - 1})
        + attributes({"HOSTNAME": stay.host})
        + plain({"HID": stay.host_id, "CID": 0, "DS_ID": 100})
        + attributes({"VM_MAD": "dummy"})
        + attributes({"TM_MAD": "dummy"})
        + attributes({"ACTION": str(stay.action)})
    )
    return element("HISTORY_RECORDS", element("HISTORY", record))


def _permissions(mode: int) -> str:
    bits = {
        f"{who}_{what}": mode >> shift & 1
        for who, first in (("OWNER", 8), ("GROUP", 5), ("OTHER", 2))
        for what, shift in (("U", first), ("M", first - 1), ("A", first - 2))
    }
    return plain(bits)


def _template(guest: Guest) -> str:
    template: dict[str, str | Mapping[str, str]] = {
        "AUTOMATIC_REQUIREMENTS": "!(PUBLIC_CLOUD = YES) & !(PIN_POLICY = PINNED)",
        "CPU": str(CPU),
        "MEMORY": str(MEMORY),
        "OS": {"UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, str(guest.id)))},
        "TEMPLATE_ID": str(guest.id),
        "VMID": str(guest.id),
    }
    if guest.graphics is not None:
        template["GRAPHICS"] = guest.graphics
    if guest.stays:
        template["TM_MAD_SYSTEM"] = "dummy"
    if guest.created_by is not None:
        template["CONTEXT"] = {"ONEGATE_ENDPOINT": _ONEGATE, "TOKEN": "YES", "VMID": str(guest.id)}
        template["CREATED_BY"] = str(guest.created_by.id)
    return attributes(template)


def _history(guest: Guest, *, last_alone: bool = False) -> str:
    if not guest.stays:
        return "<HISTORY_RECORDS/>"
    first = len(guest.stays) - 1 if last_alone else 0
    records = [_stay(guest, number) for number in range(first, len(guest.stays))]
    return element("HISTORY_RECORDS", "".join(records))


def _stay(guest: Guest, number: int) -> str:
    stay = guest.stays[number]
    is_last = number == len(guest.stays) - 1
    done = guest.state == DONE
    left = done or not (is_last or stay.under_way)
    arrived = number == 0 or not guest.stays[number - 1].under_way
    # Only the first host sees a prolog: a live migration brings the disks along.
    prolog = guest.started if number == 0 else 0
    epilog = guest.started if done and is_last else 0
    asked_by = stay.asked_by
    return element(
        "HISTORY",
        plain(
            {
                "OID": guest.id,
                "SEQ": number,
                "HOSTNAME": stay.host,
                "HID": stay.host_id,
                "CID": 0,
                "STIME": guest.started,
                "ETIME": guest.started if left else 0,
            }
        )
        + attributes({"VM_MAD": "dummy"})
        + attributes({"TM_MAD": "dummy"})
        + plain(
            {
                "DS_ID": 100,
                "PSTIME": prolog,
                "PETIME": prolog,
                "RSTIME": guest.started if arrived else 0,
                "RETIME": guest.started if stay.action and not stay.under_way else 0,
                "ESTIME": epilog,
                "EETIME": epilog,
                "ACTION": stay.action,
                "UID": asked_by.id if asked_by else -1,
                "GID": asked_by.group.id if asked_by else -1,
                "REQUEST_ID": _REQUEST_ID if asked_by else -1,
            }
        ),
    )
