"""What of a virtual machine matters for its console, read from oned's XML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyone

from vnctoken.errors import OnedError
from vnctoken.safexml import DocumentError, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lxml import etree

ACTIVE = int(pyone.VM_STATE.ACTIVE)

# What is read of a VM's own children.
_PARTS = ("STATE", "LCM_STATE", "UNAME", "STIME", "TEMPLATE", "USER_TEMPLATE", "MONITORING", "HISTORY_RECORDS")
_MAX_ID_DIGITS = len(str(2**31 - 1))

# BACKUP came with OpenNebula 6.6; pyone 7.3.80 still ends at 68.
LCM_STATES: Mapping[str, int] = {"BACKUP": 69, **{state.name: int(state) for state in pyone.LCM_STATE}}
"""The life-cycle states of an ACTIVE VM by name."""


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A VM as oned describes it. Texts are as stored, "" where oned has none.

    `owner` is the name of the user whose VM it is, `created_by` the id of the one who created it, and `started` the
    second of the epoch when: what a context token is made of.
    """

    state: int
    lcm_state: int
    graphics_type: str
    listen: str
    port: str
    password: str = field(repr=False)
    host: str
    host_attribute: str
    owner: str = ""
    created_by: str = ""
    started: str = ""

    @classmethod
    def from_xml(cls, document: str) -> VirtualMachine:
        """Read the XML that `one.vm.info` answers.

        The host is where the VM is now: HISTORY is oldest first, so the last record's HOSTNAME; of a vCenter VM it is
        the ESX host that monitoring names. `host_attribute` says which of them it is.

        Raises OnedError if this is no VM with a state.
        """
        try:
            root = parse(document.encode())
        except DocumentError:
            raise OnedError("oned answered with a VM that is not XML") from None
        return cls.from_element(root)

    @classmethod
    def from_element(cls, root: etree._Element) -> VirtualMachine:
        """Read a VM element, as `from_xml` does."""
        if root.tag != "VM":
            raise OnedError("oned answered with something that is no VM")
        parts = _children(root, *_PARTS)
        template = _children(parts.get("TEMPLATE"), "GRAPHICS", "CREATED_BY")
        graphics = _children(template.get("GRAPHICS"), "TYPE", "LISTEN", "PORT", "PASSWD")
        host, host_attribute = _host(parts)
        return cls(
            state=_number(parts, "STATE"),
            lcm_state=_number(parts, "LCM_STATE"),
            graphics_type=_text(graphics, "TYPE"),
            listen=_text(graphics, "LISTEN"),
            port=_text(graphics, "PORT"),
            password=_text(graphics, "PASSWD"),
            host=host,
            host_attribute=host_attribute,
            owner=_text(parts, "UNAME"),
            created_by=_text(template, "CREATED_BY"),
            started=_text(parts, "STIME"),
        )


def vms_by_id(document: str) -> dict[int, VirtualMachine]:
    """Read the XML that `one.vmpool.infoset` and `one.vmpool.info` answer: the VMs by id.

    In their short form the host of a vCenter VM is not the ESX host, as there is no monitoring in it.

    Raises OnedError if this is no pool of VMs.
    """
    try:
        root = parse(document.encode())
    except DocumentError:
        raise OnedError("oned answered with a pool of VMs that is not XML") from None
    if root.tag != "VM_POOL":
        raise OnedError("oned answered with something that is no pool of VMs")
    return {
        _number(_children(element, "ID"), "ID", _MAX_ID_DIGITS): VirtualMachine.from_element(element)
        for element in root.iterchildren("VM")
    }


def _children(element: etree._Element | None, *names: str) -> dict[str, etree._Element]:
    """Return the children with these names, of each name the first.

    All at once: looking for each by itself costs a third more, and every call reads a dozen.
    """
    if element is None:
        return {}
    return {child.tag: child for child in element.iterchildren(*names, reversed=True)}


def _text(elements: Mapping[str, etree._Element], name: str) -> str:
    element = elements.get(name)
    return "" if element is None else element.text or ""


def _number(elements: Mapping[str, etree._Element], name: str, digits: int = 9) -> int:
    text = _text(elements, name).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise OnedError(f"oned answered with a VM without a {name}")
    return int(text)


def _host(parts: Mapping[str, etree._Element]) -> tuple[str, str]:
    hypervisor = _text(_children(parts.get("USER_TEMPLATE"), "HYPERVISOR"), "HYPERVISOR")
    if hypervisor.strip().lower() == "vcenter":
        monitoring = _children(parts.get("MONITORING"), "VCENTER_ESX_HOST")
        return _text(monitoring, "VCENTER_ESX_HOST").strip(), "MONITORING/VCENTER_ESX_HOST"
    records = parts.get("HISTORY_RECORDS")
    last = None if records is None else next(records.iterchildren("HISTORY", reversed=True), None)
    return _text(_children(last, "HOSTNAME"), "HOSTNAME").strip(), "HISTORY/HOSTNAME"
