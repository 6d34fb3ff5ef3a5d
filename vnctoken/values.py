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

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+):([0-9]{1,5})", re.ASCII)
# What fits into sockaddr_un, with "unix:" before it.
_SOCKET_PATH = 107 + len("unix:")
_YEAR = 366 * 24 * 3600

LOG_SYSTEMS = ("file", "syslog")
TOKEN_STORES = ("folder", "redis", "jwt")

Listener = tuple[str, int] | Path
"""A loopback address and a port, or the path of a Unix socket."""


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


def _yes_or_no(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("yes or no")


def _from_zero(most: int) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        number = _number_from(value)
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= most:
            return number
        raise ValueError(f"a number of seconds from 0 to {most}")

    return parse


def _token_store(value: Any) -> str:
    if isinstance(value, str) and value.strip(":") in TOKEN_STORES:
        return value.strip(":")
    raise ValueError(", ".join(TOKEN_STORES[:-1]) + f" or {TOKEN_STORES[-1]}")


def _list_of(parse: Callable[[Any], Any], expected: str) -> Callable[[Any], tuple[Any, ...]]:
    """Return a parser of lists; one item may stand by itself."""

    def parse_list(value: Any) -> tuple[Any, ...]:
        try:
            items = tuple(parse(item) for item in (value if isinstance(value, list) else [value]))
        except ValueError:
            items = ()
        if not items:
            raise ValueError(expected)
        return items

    return parse_list


def _address(value: Any) -> tuple[str, int]:
    """Read HOST:PORT; an IPv6 address stands in brackets."""
    expected = "HOST:PORT, such as 127.0.0.1:6379 or [::1]:6379,"
    parts = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        raise ValueError(expected)
    bare, port = parts[1].strip("[]"), parts[2]
    if not (_is_ipv6(bare) if parts[1].startswith("[") else _HOST_NAME.fullmatch(bare.lower())):
        raise ValueError(expected)
    try:
        return bare, integer(1, 65535)(port)
    except ValueError:
        raise ValueError(expected) from None


def _resolver_listen(value: Any) -> Listener | None:
    """Read where the resolver listens: an address of this machine's loopback, or the path of a Unix socket."""
    expected = "127.0.0.1:PORT, [::1]:PORT or unix:/PATH of a socket"
    if value is None:
        return None
    if isinstance(value, str) and value.startswith("unix:/") and value.isprintable() and len(value) <= _SOCKET_PATH:
        return Path(value.removeprefix("unix:"))
    parts = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    try:
        if parts is not None and ipaddress.ip_address(parts[1].strip("[]")).is_loopback:
            return parts[1].strip("[]"), integer(0, 65535)(parts[2])
    except ValueError:
        pass
    raise ValueError(expected)


def _namespace(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[A-Za-z0-9_.-]{1,64}", value, re.ASCII):
        return value
    raise ValueError("1 to 64 letters, digits and _.-")


def _path(what: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        path = _text(what)(value)
        if not path.startswith("/"):
            raise ValueError(what)
        return path

    return parse


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else parse(value)


def _endpoint(value: Any) -> str | None:
    expected = "a ZeroMQ endpoint such as tcp://localhost:2101, or nothing,"
    if value is None:
        return None
    text = _text(expected)(value)
    try:
        parts = urlsplit(text)
        if parts.scheme == "tcp" and parts.port and parts.hostname and not parts.path and "@" not in parts.netloc:
            return text
    except ValueError:
        pass
    raise ValueError(expected)


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
    "token_store": _token_store,
    "token_ttl": integer(0, _YEAR),
    "token_ttl_max": integer(1, _YEAR),
    "tokens_per_vm": integer(1, 1000),
    "recheck_interval": _from_zero(3600),
    "subscriber_endpoint": _endpoint,
    "resolver_listen": _resolver_listen,
    "reuse_window": _from_zero(60),
    "verify_on_connect": _yes_or_no,
    "redis_servers": _list_of(_address, "HOST:PORT, such as 127.0.0.1:6379 or [::1]:6379, or a list of them,"),
    "redis_sentinel": _optional(_namespace),
    "redis_db": integer(0, 65535),
    "redis_namespace": _namespace,
    "redis_password_file": _optional(_path("the absolute path of a file with the password")),
    "redis_tls": _yes_or_no,
    "redis_ca": _certificates,
    "redis_timeout": _seconds,
    "jwt_key_files": _list_of(
        _path("the absolute path of a key file"), "the absolute path of a key file, or a list of them, the newest first,"
    ),
    "vnc_ports": _ports,
    "console_states": _states,
    "vnc_proxy_support_wss": _wss,
    "console_url": _console_url,
    "proxy_address": _address,
    "public_url": _optional(_url),
    "max_request_bytes": integer(1024, 2**24),
    "max_connections": integer(1, 100_000),
    "debug_level": integer(0, 3),
}
"""The keys of vnctoken-server.conf, and how the value of each is read."""
