"""What people call VMs (ids, lists, ranges and names), and which VMs a user may see."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vnctoken.arguments import MAX_VM_ID
from vnctoken.client.calls import written
from vnctoken.client.errors import ClientError, NoExistsError, refusal
from vnctoken.client.http import post
from vnctoken.safexml import DocumentError, parse
from vnctoken.wire import Fault, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vnctoken.client.endpoints import Endpoint

MOST_VMS = 1000
"""How many VMs one command may name."""

_RANGE = re.compile(r"([0-9]{1,10})(?:\.\.([0-9]{1,10}))?", re.ASCII)

# Arguments of one.vmpool.info: whatever the user may see, from the first to the last id, in any state but DONE.
_VISIBLE, _FIRST, _LAST, _NOT_DONE = -2, -1, -1, -1


def references(text: str) -> list[int | str]:
    """Return the ids and names in a list such as "7,9..12,web"; raise ValueError, which says what is wrong."""
    found: dict[int | str, None] = {}
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (part, "") if match is None else (match[1], match[2] or match[1])
        if not part:
            raise ValueError("a VM's id or name is missing; expected 7, 7,9 or 7..9")
        if not last:
            found[part] = None
            continue
        if int(last) > MAX_VM_ID:
            raise ValueError(f"{part} is not the id of a VM; these end at {MAX_VM_ID}")
        if int(first) > int(last):
            raise ValueError(f"{part} begins after its end; expected such as 7..9")
        if int(last) - int(first) >= MOST_VMS:
            raise ValueError(f"{part} is more than {MOST_VMS} VMs")
        found |= dict.fromkeys(range(int(first), int(last) + 1))
    if len(found) > MOST_VMS:
        raise ValueError(f"these are more than {MOST_VMS} VMs")
    return list(found)


def ids(wanted: Sequence[int | str], names: Callable[[], Mapping[int, str]]) -> list[int]:
    """Return the ids of VMs of which some are called by name; `names` is asked only then. Raises NoExistsError."""
    known = names() if any(isinstance(one, str) for one in wanted) else {}
    return list(dict.fromkeys(one if isinstance(one, int) else _id(one, known) for one in wanted))


def visible_vms(oned: Endpoint, session: str, seconds: float) -> dict[int, str]:
    """Return the names of the VMs that a session's owner may see, by id. Raises what `vnctoken.client.errors` draws."""
    answer = post(oned, written("one.vmpool.info", session, _VISIBLE, _FIRST, _LAST, _NOT_DONE), seconds)
    try:
        match read_answer(answer):
            case [True, str(document), *_]:
                vms = parse(document.encode()).iterchildren("VM")
                return dict(sorted((int(vm.findtext("ID", "")), vm.findtext("NAME", "")) for vm in vms))
            case [False, str(message), int(code), *_]:
                raise refusal(code, message)
    except (DocumentError, Fault, ValueError):
        pass
    raise ClientError(f"{oned.url}: the answer is not the one that oned gives; is this its address (ONE_XMLRPC)?")


def _id(name: str, known: Mapping[int, str]) -> int:
    match [vm_id for vm_id, called in known.items() if called == name]:
        case [vm_id]:
            return vm_id
        case []:
            raise NoExistsError(f"no VM that you may see is named {name!r}; call it by its id")
    raise NoExistsError(f"several VMs are named {name!r}; call one by its id")
