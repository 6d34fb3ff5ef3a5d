"""The arguments of the methods, read strictly: what a caller mixes up is named, and never repeated in the log."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vnctoken.errors import ApiError
from vnctoken.wire import Unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vnctoken.wire import Value

MAX_VM_ID = 2**31 - 1
_DIGITS = re.compile(r"0*([0-9]{1,10})", re.ASCII)
_QUOTED_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may ask of a token: seconds to live (None: as configured), one use only, one address only."""

    ttl: int | None = None
    single_use: bool = False
    client: str = ""


def read_session(arguments: Sequence[Value]) -> str:
    """Return the first argument, a session string, or the empty one; raise ApiError if it is neither."""
    match arguments:
        case []:
            raise ApiError("Argument 1 is missing: the session, a non-empty string, is expected")
        case ["", *_]:
            return ""
        case [str(text), *_] if session := text.rstrip():
            # People paste the one_auth file with its line end.
            return session
    raise ApiError(f"Argument 1, the session, must be a non-empty string, but is {_kind(arguments[0])}")


def read_vm_id(arguments: Sequence[Value]) -> int:
    """Return the second argument, a VM's id; raise ApiError if it is none."""
    match arguments:
        case [_]:
            raise ApiError("Argument 2 is missing: the VM id, an int, is expected")
        case [_, bool(), *_]:
            pass  # True is an int in Python
        case [_, int(number), *_] if 0 <= number <= MAX_VM_ID:
            return number
        case [_, str(text), *_] if (digits := _DIGITS.fullmatch(text)) and int(digits[1]) <= MAX_VM_ID:
            # An untyped <value>7</value> is a string, and scripts send it.
            return int(digits[1])
    raise ApiError(
        f"Argument 2, the VM id, must be an int from 0 to {MAX_VM_ID} or a string of digits,"
        f" but is {_kind(arguments[1])}"
    )


def read_options(arguments: Sequence[Value]) -> Options:
    """Return the options in the third argument; anything but a struct is ignored there, as it always was.

    Raises ApiError for members that there are not, or of a wrong type.
    """
    options = Options()
    match arguments:
        case [_, _, dict(members), *_]:
            for name, value in members.items():
                options = _with_option(options, name, value)
    return options


def read_token(arguments: Sequence[Value]) -> str | None:
    """Return the third argument, a token or its fingerprint, None if it is missing; raise ApiError if it is neither."""
    match arguments:
        case [_, _]:
            return None
        case [_, _, str(text), *_] if token := text.strip():
            return token
    raise ApiError(
        f"Argument 3, the token or its fingerprint, must be a non-empty string, but is {_kind(arguments[2])}"
    )


def quoted(text: str) -> str:
    """Return a caller's text for a message to him, cut if it is long."""
    return text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "..."


_OPTIONS = {"ttl": "an int of seconds from 1 on", "single_use": "a boolean", "client": "an IP address"}


def _with_option(options: Options, name: str, value: Value) -> Options:
    match name, value:
        case "ttl", int(seconds) if not isinstance(value, bool) and seconds >= 1:
            return replace(options, ttl=seconds)
        case "single_use", bool(single_use):
            return replace(options, single_use=single_use)
        case "client", str(address) if _is_address(address):
            return replace(options, client=str(ipaddress.ip_address(address)))
    if name not in _OPTIONS:
        raise ApiError(f"Argument 3: there is no option '{quoted(name)}'. Expected {', '.join(_OPTIONS)}")
    raise ApiError(f"Argument 3: the option {name} must be {_OPTIONS[name]}, but is {_kind(value)}")


def _is_address(text: str) -> bool:
    try:
        return getattr(ipaddress.ip_address(text), "scope_id", None) is None
    except ValueError:
        return False


def _kind(value: Value) -> str:
    """Name what was given, without its text: it may be a secret in the wrong place."""
    match value:
        case Unsupported(type_name):
            return f"of type {quoted(type_name)}"
        case bool():
            return "a boolean"
        case int():
            return f"the int {value}"
        case "":
            return "an empty string"
        case str():
            return "another string"
        case list():
            return "an array"
        case _:
            return "a struct"
