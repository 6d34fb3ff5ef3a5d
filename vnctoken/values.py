"""What the value of each configuration key may be: one parser a key.

A parser returns the value as the service uses it, or raises ValueError with what is expected instead.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vnctoken.addresses import is_host, is_http_url, is_tcp_endpoint, read_address
from vnctoken.links import checked_template
from vnctoken.vm import LCM_STATES

# What fits into sockaddr_un.
_SOCKET_PATH_BYTES = 107
_MINUTE = 60
_HOUR = 60 * _MINUTE
_YEAR = 366 * 24 * _HOUR

LOG_SYSTEMS = ("file", "syslog")
TOKEN_STORES = ("folder", "redis", "jwt")

UNSHOWN = frozenset({"redis_password_file"})
"""The keys whose values are in no message, as what is wrong with one may be that it is a password."""

Listener = tuple[str, int] | Path
"""A loopback address and a port, or the path of a Unix socket."""


def shown(value: Any) -> str:
    """Quote a value for a message, without the password that an address may begin with."""
    try:
        return re.sub(r"[^\s'\"]*@", "...@", repr(value))
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


def _seconds(expected: str, allowed: Callable[[float], bool]) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        number = _number_from(value)
        if isinstance(number, int | float) and not isinstance(number, bool) and allowed(number):
            return number
        raise ValueError(expected)

    return parse


def _listening_host(value: Any) -> str:
    host = _text("the IP address or name of this machine to listen at")(value)
    if not is_host(host):
        raise ValueError("the IP address or name of this machine to listen at")
    return host


def _url(example: str) -> Callable[[Any], str]:
    expected = (
        f"a URL such as {example}, http or https, without user and query, its host an address or a name of letters,"
        " digits and hyphens,"
    )

    def parse(value: Any) -> str:
        text = _text(expected)(value)
        if not is_http_url(text):
            raise ValueError(expected)
        return text

    return parse


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


def _token_store(value: Any) -> str:
    if isinstance(value, str) and value.strip(":") in TOKEN_STORES:
        return value.strip(":")
    raise ValueError("folder, redis or jwt")


def _address(value: Any) -> tuple[str, int]:
    expected = "HOST:PORT, such as 127.0.0.1:29877 or '[::1]:29877',"
    return _port_given(value, expected)


def _addresses(value: Any) -> tuple[tuple[str, int], ...]:
    expected = "HOST:PORT, such as 127.0.0.1:6379 or '[::1]:6379', or a list of them,"
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ValueError(expected)
    return tuple(_port_given(item, expected) for item in items)


def _port_given(value: Any, expected: str) -> tuple[str, int]:
    try:
        host, port = read_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(expected) from None
    if port == 0:
        raise ValueError(expected)
    return host, port


def _resolver_listen(value: Any) -> Listener | None:
    if value is None:
        return None
    if isinstance(value, str):
        path = Path(value.removeprefix("unix:"))
        if value.startswith("unix:/") and value.isprintable() and path.name:
            if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
                return path
        else:
            with contextlib.suppress(ValueError):
                host, port = read_address(value)
                if ipaddress.ip_address(host).is_loopback:
                    return host, port
    raise ValueError("127.0.0.1:PORT, '[::1]:PORT' or unix:/PATH of a socket")


def _name(what: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch("[A-Za-z0-9_.-]{1,64}", value, re.ASCII):
            return value
        raise ValueError(f"{what}, 1 to 64 letters, digits and '_.-',")

    return parse


def _path(what: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        path = _text(what)(value)
        if not path.startswith("/"):
            raise ValueError(what)
        return path

    return parse


def _key_files(value: Any) -> tuple[str, ...]:
    parse = _path("the absolute path of a key file, or a list of them, the one to make tokens with first,")
    if value is None:
        return ()
    return tuple(map(parse, value if isinstance(value, list) else [value]))


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else parse(value)


def _endpoint(value: Any) -> str:
    expected = "a ZeroMQ endpoint such as tcp://localhost:2101, or nothing,"
    text = _text(expected)(value)
    if not is_tcp_endpoint(text):
        raise ValueError(expected)
    return text


def _console_url(value: Any) -> str:
    return checked_template(_text("a URL, or nothing,")(value))


def log_system(value: Any) -> str:
    """Read where `:log:` wants the log to go."""
    if isinstance(value, str) and value.strip(":") in LOG_SYSTEMS:
        return value.strip(":")
    raise ValueError(" or ".join(LOG_SYSTEMS))


_timeout = _seconds(f"a number of seconds above 0, at most {_HOUR},", lambda number: 0 < number <= _HOUR)
# Asked every 0.001 s, oned would get to nothing else.
_interval = _seconds(f"0 or a number of seconds from 1 to {_HOUR}", lambda number: number == 0 or 1 <= number <= _HOUR)
_window = _seconds(f"a number of seconds from 0 to {_MINUTE}", lambda number: 0 <= number <= _MINUTE)

PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "host": _listening_host,
    "port": integer(0, 65535),
    "one_xmlrpc": _url("http://localhost:2633/RPC2"),
    "one_xmlrpc_timeout": _timeout,
    "one_xmlrpc_connections": integer(1, 1000),
    "one_xmlrpc_ca": _optional(_text("the path of a file of CA certificates in PEM")),
    "token_folder_name": _folder_name,
    "token_store": _token_store,
    "token_ttl": integer(0, _YEAR),
    "token_ttl_max": integer(1, _YEAR),
    "tokens_per_vm": integer(1, 1000),
    "recheck_interval": _interval,
    "subscriber_endpoint": _optional(_endpoint),
    "resolver_listen": _resolver_listen,
    "reuse_window": _window,
    "verify_on_connect": _yes_or_no,
    "redis_servers": _addresses,
    "redis_sentinel": _optional(_name("the name that the Sentinels have for a master")),
    "redis_db": integer(0, 65535),
    "redis_namespace": _name("what the keys begin with"),
    "redis_password_file": _optional(_path("the absolute path of a file with the password")),
    "redis_tls": _yes_or_no,
    "redis_ca": _optional(_text("the path of a file of CA certificates in PEM")),
    "redis_timeout": _timeout,
    "jwt_key_files": _key_files,
    "vnc_ports": _ports,
    "console_states": _states,
    "vnc_proxy_support_wss": _wss,
    "console_url": _optional(_console_url),
    "proxy_address": _address,
    "public_url": _optional(_url("https://cloud.example.org/RPC2/vnctoken")),
    "max_request_bytes": integer(1024, 2**24),
    "max_connections": integer(1, 100_000),
    "debug_level": integer(0, 3),
}
"""The keys of vnctoken-server.conf, and how the value of each is read."""
