"""What the value of each configuration key may be: one parser a key.

A parser returns the value as the service uses it, or raises ValueError with what is expected instead.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vnctoken.links import checked_template
from vnctoken.vm import LCM_STATES

# What Twisted looks up; it refuses underscores, though /etc/hosts may have them.
_HOST_NAME = re.compile(r"(?!.{254})[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\.?")

LOG_SYSTEMS = ("file", "syslog")


def shown(value: Any) -> str:
    """Quote a value for a message, without the password that a URL may hold."""
    try:
        return re.sub("//[^/@]*@", "//...@", repr(value))
    except ValueError:
        return "a number of thousands of digits"


def _text(expected: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if isinstance(value, str) and value and value.isprintable() and " " not in value:
            return value
        raise ValueError(expected)

    return parse


def _number_from(value: Any) -> Any:
    """Return a number that was quoted as the number it is; longer ones fit no key."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value, re.ASCII) else value


def integer(low: int, high: int) -> Callable[[Any], int]:
    """Return a parser of whole numbers between two bounds, both allowed."""

    def parse(value: Any) -> int:
        number = _number_from(value)
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def _seconds(value: Any) -> float:
    number = _number_from(value)
    if isinstance(number, int | float) and not isinstance(number, bool) and 0 < number <= 3600:  # noqa: PLR2004 (an hour)
        return number
    raise ValueError("a number of seconds above 0, at most 3600,")


def _listening_host(value: Any) -> str:
    host = _text("the IP address or name of this machine to listen at")(value)
    if not (_HOST_NAME.fullmatch(host.lower()) or _is_ipv6(host)):
        raise ValueError("the IP address or name of this machine to listen at")
    return host


def _url(value: Any) -> str:
    expected = (
        "a URL such as http://localhost:2633/RPC2, http or https, without user and query, its host an address or a name"
        " of letters, digits and hyphens,"
    )
    text = _text(expected)(value)
    try:
        parts = urlsplit(text)
        valid = (
            text.isascii()
            and parts.scheme in ("http", "https")
            and (_HOST_NAME.fullmatch(parts.hostname or "") or _is_ipv6(parts.hostname or ""))
            and "@" not in parts.netloc
            and not parts.query
            and not parts.fragment
            and parts.port != 0
        )
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(expected)
    return text


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _certificates(value: Any) -> str | None:
    return None if value is None else _text("the path of a file of CA certificates in PEM")(value)


def _folder_name(value: Any) -> str:
    expected = "the name of a folder of its own, relative to OpenNebula's var folder or absolute,"
    # The proxy reads every file in the folder: it must never be one that other things are in.
    if not isinstance(value, str) or not value.isprintable() or Path(value).name in ("", ".."):
        raise ValueError(expected)
    return value


def _ports(value: Any) -> range:
    expected = 'two TCP ports, the lower one first, such as "5900:65535",'
    low, _, high = value.partition(":") if isinstance(value, str) else ("", "", "")
    try:
        port = integer(1, 65535)
        ports = range(port(low), port(high) + 1)
    except ValueError:
        raise ValueError(expected) from None
    if not ports:
        raise ValueError(expected)
    return ports


def _states(value: Any) -> frozenset[int]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError("a list of LCM states such as [RUNNING, UNKNOWN]")
    return frozenset(_state(item) for item in value)


def _state(value: Any) -> int:
    if isinstance(value, str) and value.upper().strip(":") in LCM_STATES:
        return LCM_STATES[value.upper().strip(":")]
    try:
        return integer(0, 999)(value)
    except ValueError:
        given = shown(value)
        nearest = difflib.get_close_matches(given.upper(), LCM_STATES, n=1, cutoff=0)[0]
        raise ValueError(f"a list of numbers or names of LCM states (nearest to {given}: {nearest})") from None


def _wss(value: Any) -> bool:
    # YAML makes booleans of yes and no; Sunstone also knows "only".
    known = {"yes": True, "only": True, "true": True, "no": False, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip(":").lower() in known:
        return known[value.strip(":").lower()]
    raise ValueError("yes, no or only")


def _console_url(value: Any) -> str | None:
    return None if value is None else checked_template(_text("a URL, or nothing,")(value))


def log_system(value: Any) -> str:
    """Read where `:log:` wants the log to go."""
    if isinstance(value, str) and value.strip(":") in LOG_SYSTEMS:
        return value.strip(":")
    raise ValueError(" or ".join(LOG_SYSTEMS))


PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "host": _listening_host,
    "port": integer(0, 65535),
    "one_xmlrpc": _url,
    "one_xmlrpc_timeout": _seconds,
    "one_xmlrpc_connections": integer(1, 1000),
    "one_xmlrpc_ca": _certificates,
    "token_folder_name": _folder_name,
    "vnc_ports": _ports,
    "console_states": _states,
    "vnc_proxy_support_wss": _wss,
    "console_url": _console_url,
    "max_request_bytes": integer(1024, 2**24),
    "max_connections": integer(1, 100_000),
    "debug_level": integer(0, 3),
}
"""The keys of vnctoken-server.conf, and how the value of each is read."""
