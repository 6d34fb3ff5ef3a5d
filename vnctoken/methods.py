"""The methods that portals may call: how each shows a console, and what introspection tells about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lxml import etree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vnctoken.consoles import Console


@dataclass(frozen=True)
class Method:
    """What introspection tells: the types of the answer and of each argument, and a sentence or two."""

    signature: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class ConsoleMethod(Method):
    """A method that opens a console; `render` makes its answer's second element."""

    render: Callable[[Console], Any]


def as_struct(console: Console) -> dict[str, Any]:
    """Return a console under its documented and its deployed names, for both generations of clients.

    Url is there if the service has a `:console_url:`.
    """
    documented = {
        "VmId": console.vm_id,
        "Host": console.host,
        "Type": console.type,
        "Port": console.port,
        "Listen": console.listen,
        "Password": console.password,
        "Wss": console.wss,
        "Token": console.token,
    }
    if console.url is not None:
        documented["Url"] = console.url
    deployed = {"id" if name == "VmId" else name.lower(): value for name, value in documented.items()}
    return documented | deployed


def as_xml(console: Console) -> str:
    """Return a console as a VM element; URL is there if the service has a `:console_url:`."""
    root = etree.Element("VM")
    values = [
        ("ID", str(console.vm_id)),
        ("VMID", str(console.vm_id)),
        ("HOST", console.host),
        ("TYPE", console.type),
        ("PORT", str(console.port)),
        ("LISTEN", console.listen),
        ("PASSWORD", console.password),
        ("WSS", "true" if console.wss else "false"),
        ("TOKEN", console.token),
    ]
    if console.url is not None:
        values.append(("URL", console.url))
    for name, text in values:
        etree.SubElement(root, name).text = text
    return etree.tostring(root, encoding="unicode")


def as_token(console: Console) -> str:
    """Return the token alone."""
    return console.token


_ARGUMENTS = "Arguments: the session string, the VM id. Returns an array: true, {}, 0; or false, a message, a code."
_TYPES = ("array", "string", "int")

CONSOLE_METHODS: Mapping[str, ConsoleMethod] = {
    "one.vm.vnctoken": ConsoleMethod(
        _TYPES,
        "Open the console of a VM. "
        + _ARGUMENTS.format(
            "a struct with VmId, Host, Type, Port, Listen, Password, Wss and Token, and Url if :console_url: is set"
            " (again as id, host, type, port, listen, password, wss, token and url)"
        ),
        as_struct,
    ),
    "one.vm.vnctokenonly": ConsoleMethod(
        _TYPES, "Open the console of a VM. " + _ARGUMENTS.format("the token"), as_token
    ),
    "one.vm.vnc": ConsoleMethod(
        _TYPES,
        "Open the console of a VM. " + _ARGUMENTS.format("the values of one.vm.vnctoken as XML, a VM element"),
        as_xml,
    ),
}
"""The methods that answer `[bool, result, code]`."""

SYSTEM_METHODS: Mapping[str, Method] = {
    "system.listMethods": Method(("array",), "Return the names of the methods."),
    "system.methodHelp": Method(("string", "string"), "Return what a method does."),
    "system.methodSignature": Method(
        ("array", "string"),
        "Return the signatures of a method: the type of its answer, then those of its arguments.",
    ),
    "system.multicall": Method(
        ("array", "array"),
        "Carry out many calls at once, each a struct of methodName and params. Returns, in the same order, for each"
        " call an array with its answer, or a struct with faultCode and faultString.",
    ),
}
"""The methods that every XML-RPC server has; they answer bare values, and faults."""
