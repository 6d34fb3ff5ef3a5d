"""The methods that portals may call: what each does and answers, and what introspection tells about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lxml import etree

from vnctoken.arguments import read_options, read_token
from vnctoken.tokens import fingerprint
from vnctoken.wire import Fault, FaultCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from vnctoken.auth import Caller
    from vnctoken.consoles import Console, Consoles
    from vnctoken.tokens import LiveToken
    from vnctoken.wire import MethodCall, Value

    Action = Callable[[Consoles, Caller, int, Sequence[Value]], Awaitable["Outcome"]]


@dataclass(frozen=True)
class Method:
    """What introspection tells: for each way to call it the types of answer and arguments, and a sentence or two."""

    signatures: tuple[tuple[str, ...], ...]
    help: str


@dataclass(frozen=True)
class Outcome:
    """The second element of a method's answer, and what the log says of it."""

    result: Any
    note: str


@dataclass(frozen=True)
class ConsoleMethod(Method):
    """A method about a VM's console, of a caller and a VM; it reads the arguments after these two by itself."""

    carry_out: Action


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
        "Ttl": console.ttl,
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
        ("TTL", str(console.ttl)),
    ]
    if console.url is not None:
        values.append(("URL", console.url))
    for name, text in values:
        etree.SubElement(root, name).text = text
    return etree.tostring(root, encoding="unicode")


def as_token(console: Console) -> str:
    """Return the token alone."""
    return console.token


def as_entry(live: LiveToken) -> dict[str, Any]:
    """Return a live token as a struct; the times are seconds of the epoch, 0 where there is none."""
    return {
        "fingerprint": live.fingerprint,
        "user": live.grant.user,
        "issued": int(live.grant.issued),
        "expires": int(live.grant.expires),
        "used": int(live.used),
        "single_use": live.grant.single_use,
        "client": live.grant.client,
    }


def _opening(render: Callable[[Console], Any]) -> Action:
    async def carry_out(consoles: Consoles, caller: Caller, vm_id: int, arguments: Sequence[Value]) -> Outcome:
        console = await consoles.open(caller, vm_id, read_options(arguments))
        return Outcome(render(console), f"token={fingerprint(console.token)}")

    return carry_out


async def _revoke(consoles: Consoles, caller: Caller, vm_id: int, arguments: Sequence[Value]) -> Outcome:
    count = await consoles.revoke(caller, vm_id, read_token(arguments))
    return Outcome(count, f"revoked={count}")


async def _list(consoles: Consoles, caller: Caller, vm_id: int, _arguments: Sequence[Value]) -> Outcome:
    live = await consoles.tokens(caller, vm_id)
    return Outcome([as_entry(one) for one in live], f"tokens={len(live)}")


_OPEN = (
    "Open the console of a VM. Arguments: the session string, the VM id, and if you like a struct of options: ttl"
    " (seconds), single_use (boolean), client (IP address). Returns an array: true, {}, 0; or false, a message, a code."
)
_SHORT = ("array", "string", "int")
_OPEN_TYPES = (_SHORT, (*_SHORT, "struct"))

CONSOLE_METHODS: Mapping[str, ConsoleMethod] = {
    "one.vm.vnctoken": ConsoleMethod(
        _OPEN_TYPES,
        _OPEN.format(
            "a struct with VmId, Host, Type, Port, Listen, Password, Wss, Token, Ttl, and Url if :console_url: is set"
            " (again as id, host, type, port, listen, password, wss, token, ttl and url)"
        ),
        _opening(as_struct),
    ),
    "one.vm.vnctokenonly": ConsoleMethod(_OPEN_TYPES, _OPEN.format("the token"), _opening(as_token)),
    "one.vm.vnc": ConsoleMethod(
        _OPEN_TYPES, _OPEN.format("the values of one.vm.vnctoken as XML, a VM element"), _opening(as_xml)
    ),
    "one.vm.vncrevoke": ConsoleMethod(
        (_SHORT, (*_SHORT, "string")),
        "Take back tokens of a VM; consoles that are open stay open. Arguments: the session string, the VM id, and if"
        " you like one token or its fingerprint. Returns an array: true, how many were taken back, 0; or false, a"
        " message, a code.",
        _revoke,
    ),
    "one.vm.vnctokens": ConsoleMethod(
        (_SHORT,),
        "List the live tokens of a VM. Arguments: the session string, the VM id. Returns an array: true, an array of"
        " structs with fingerprint, user, issued, expires, used (seconds of the epoch, 0 for never), single_use and"
        " client, 0; or false, a message, a code.",
        _list,
    ),
}
"""The methods that answer `[bool, result, code]`."""

SYSTEM_METHODS: Mapping[str, Method] = {
    "system.listMethods": Method((("array",),), "Return the names of the methods."),
    "system.methodHelp": Method((("string", "string"),), "Return what a method does."),
    "system.methodSignature": Method(
        (("array", "string"),),
        "Return the signatures of a method: the type of its answer, then those of its arguments.",
    ),
    "system.multicall": Method(
        (("array", "array"),),
        "Carry out many calls at once, each a struct of methodName and params. Returns, in the same order, for each"
        " call an array with its answer, or a struct with faultCode and faultString.",
    ),
}
"""The methods that every XML-RPC server has; they answer bare values, and faults."""


def introspected(call: MethodCall) -> Any:
    """Return what a call of a system method, other than system.multicall, is answered. Raises Fault."""
    match call.method:
        case "system.listMethods":
            return [*CONSOLE_METHODS, *SYSTEM_METHODS]
        case "system.methodHelp":
            return _described(call).help
        case _:
            return [list(signature) for signature in _described(call).signatures]


def _described(call: MethodCall) -> Method:
    match call.arguments:
        case [str(name), *_]:
            method = CONSOLE_METHODS.get(name) or SYSTEM_METHODS.get(name)
            if method is not None:
                return method
    raise Fault(FaultCode.INVALID_PARAMETERS, f"{call.method}: the name of a method that we have is expected")
