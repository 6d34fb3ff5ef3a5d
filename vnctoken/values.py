"""What the value of each configuration key may be: one parser a key.

A parser returns the value as the service uses it, or raises ValueError with what is expected instead.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vnctoken import valuekinds as kinds
from vnctoken.accessvalues import (
    CORE_AUTHS,
    NONE,
    doors,
    groups,
    networks,
    permissions,
    proxies,
    rate,
    rate_or_none,
)
from vnctoken.addresses import is_host, is_tcp_endpoint, read_address
from vnctoken.links import checked_template
from vnctoken.vm import LCM_STATES

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_YEAR = 366 * _DAY

TOKEN_STORES = ("folder", "redis", "jwt")

UNSHOWN = frozenset({"redis_password_file"})
"""The keys whose values are in no message, as what is wrong with one may be that it is a password."""

Listener = tuple[str, int] | Path
"""A loopback address and a port, or the path of a Unix socket."""


def _listening_host(value: Any) -> str:
    host = kinds.text("the IP address or name of this machine to listen at")(value)
    if not is_host(host):
        raise ValueError("the IP address or name of this machine to listen at")
    return host


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
        port = kinds.integer(1, 65535)
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
        return kinds.integer(0, 999)(value)
    except ValueError:
        given = kinds.shown(value)
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


def _address(value: Any) -> tuple[str, int]:
    expected = "HOST:PORT, such as 127.0.0.1:29877 or '[::1]:29877',"
    return kinds.host_and_port(value, expected)


def _addresses(value: Any) -> tuple[tuple[str, int], ...]:
    expected = "HOST:PORT, such as 127.0.0.1:6379 or '[::1]:6379', or a list of them,"
    if not (items := kinds.listed(value)):
        raise ValueError(expected)
    return tuple(kinds.host_and_port(item, expected) for item in items)


def _resolver_listen(value: Any) -> Listener | None:
    if value is None:
        return None
    if isinstance(value, str):
        if (path := kinds.socket_path(value)) is not None:
            return path
        with contextlib.suppress(ValueError):
            host, port = read_address(value)
            if ipaddress.ip_address(host).is_loopback:
                return host, port
    raise ValueError("127.0.0.1:PORT, '[::1]:PORT' or unix:/PATH of a socket")


def _monitor_listen(value: Any) -> Listener | None:
    if value == NONE:
        return None
    try:
        listener = _resolver_listen(value)
    except ValueError as error:
        raise ValueError(f"none, {error}") from None
    if listener is None:
        raise ValueError("none, 127.0.0.1:PORT, '[::1]:PORT' or unix:/PATH of a socket")
    return listener


def _key_files(value: Any) -> tuple[str, ...]:
    parse = kinds.path("the absolute path of a key file, or a list of them, the one to make tokens with first,")
    if value is None:
        return ()
    return tuple(map(parse, kinds.listed(value)))


def _endpoint(value: Any) -> str:
    expected = "a ZeroMQ endpoint such as tcp://localhost:2101, or nothing,"
    endpoint = kinds.text(expected)(value)
    if not is_tcp_endpoint(endpoint):
        raise ValueError(expected)
    return endpoint


def _console_url(value: Any) -> str:
    return checked_template(kinds.text("a URL, or nothing,")(value))


log_system = kinds.one_of("file", "syslog")
"""Reads where `:log:` wants the log to go."""

_timeout = kinds.seconds(f"a number of seconds above 0, at most {_HOUR},", lambda number: 0 < number <= _HOUR)
# Asked every 0.001 s, oned would get to nothing else.
_interval = kinds.seconds(
    f"0 or a number of seconds from 1 to {_HOUR}", lambda number: number == 0 or 1 <= number <= _HOUR
)
_window = kinds.seconds(f"a number of seconds from 0 to {_MINUTE}", lambda number: 0 <= number <= _MINUTE)

PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "host": _listening_host,
    "port": kinds.integer(0, 65535),
    "one_xmlrpc": kinds.url("http://localhost:2633/RPC2"),
    "one_xmlrpc_timeout": _timeout,
    "one_xmlrpc_connections": kinds.integer(1, 1000),
    "one_xmlrpc_ca": kinds.optional(kinds.text("the path of a file of CA certificates in PEM")),
    "auth": doors,
    "core_auth": kinds.one_of(*CORE_AUTHS),
    "expire_delta": kinds.integer(1, _DAY),
    "expire_margin": kinds.integer(0, _DAY),
    "trusted_proxies": proxies,
    "auth_failures": rate,
    "permissions": permissions,
    "restricted_groups": groups,
    "allowed_groups": groups,
    "token_folder_name": _folder_name,
    "token_store": kinds.one_of(*TOKEN_STORES),
    "token_ttl": kinds.integer(0, _YEAR),
    "token_ttl_max": kinds.integer(1, _YEAR),
    "tokens_per_vm": kinds.integer(1, 1000),
    "recheck_interval": _interval,
    "subscriber_endpoint": kinds.optional(_endpoint),
    "resolver_listen": _resolver_listen,
    "reuse_window": _window,
    "verify_on_connect": kinds.yes_or_no,
    "redis_servers": _addresses,
    "redis_sentinel": kinds.optional(kinds.name("the name that the Sentinels have for a master")),
    "redis_db": kinds.integer(0, 65535),
    "redis_namespace": kinds.name("what the keys begin with"),
    "redis_password_file": kinds.optional(kinds.path("the absolute path of a file with the password")),
    "redis_tls": kinds.yes_or_no,
    "redis_ca": kinds.optional(kinds.text("the path of a file of CA certificates in PEM")),
    "redis_timeout": _timeout,
    "jwt_key_files": _key_files,
    "calls_per_user": rate_or_none,
    "calls_per_vm": rate_or_none,
    "calls_per_client": rate_or_none,
    "calls_total": rate_or_none,
    "tokens_per_user": kinds.integer_or_none(1, 1_000_000),
    "tokens_per_client": kinds.integer_or_none(1, 1_000_000),
    "tokens_total": kinds.integer_or_none(1, 1_000_000),
    "limits_exempt": networks,
    "audit_log": kinds.optional(kinds.path("the absolute path of a file, or nothing,")),
    "audit_required": kinds.yes_or_no,
    "monitor_listen": _monitor_listen,
    "vnc_ports": _ports,
    "console_states": _states,
    "vnc_proxy_support_wss": _wss,
    "console_url": kinds.optional(_console_url),
    "proxy_address": _address,
    "public_url": kinds.optional(kinds.url("https://cloud.example.org/RPC2/vnctoken")),
    "max_request_bytes": kinds.integer(1024, 2**24),
    "max_connections": kinds.integer(1, 100_000),
    "debug_level": kinds.integer(0, 3),
}
"""The keys of vnctoken-server.conf, and how the value of each is read."""
