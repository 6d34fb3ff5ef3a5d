"""What the values of the keys may be that say who is let in, and to what: the parsers of these.

A parser returns the value as the service uses it, or raises ValueError with what is expected instead.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

from vnctoken.valuekinds import listed, number_from, socket_path

_SECONDS_OF = {"s": 1, "sec": 1, "min": 60, "hour": 60 * 60}

DOORS = ("opennebula", "basic", "x509", "remote", "ec2", "onegate")
CORE_AUTHS = ("cipher", "x509")
METHODS = ("vnctoken", "vnctokenonly", "vnc", "vncrevoke", "vnctokens")
"""The methods that `:permissions:` can switch off, without their `one.vm.`."""

NONE = "none"
"""What is written where there shall be no limit, and no listener."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Proxy = ipaddress.IPv4Network | ipaddress.IPv6Network | Path
"""A network of trusted proxies, or the path of a Unix socket that they connect to."""


def doors(value: Any) -> tuple[str, ...]:
    """Read which doors there are, in order."""
    named = tuple(item.strip(":") if isinstance(item, str) else "" for item in listed(value))
    if not named or len({*named}) < len(named) or not {*DOORS}.issuperset(named):
        raise ValueError(f"a list of {', '.join(DOORS)}, each once at most,")
    return named


def proxies(value: Any) -> tuple[Proxy, ...]:
    """Read which proxies are trusted."""
    return () if value is None else tuple(map(_proxy, listed(value)))


def _proxy(value: Any) -> Proxy:
    expected = "a list of IP addresses, networks such as 10.1.2.0/24, and unix:/PATH of sockets"
    written = value if isinstance(value, str) else ""
    if (path := socket_path(written)) is not None:
        return path
    try:
        network = ipaddress.ip_network(written)
    except ValueError:
        raise ValueError(expected) from None
    if network.prefixlen == 0:
        raise ValueError(f"{expected} (this network is everybody)")
    return network


def networks(value: Any) -> tuple[Network, ...]:
    """Read addresses and networks."""
    return () if value is None else tuple(map(_network, listed(value)))


def _network(value: Any) -> Network:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("a list of IP addresses, and networks such as 10.1.2.0/24,") from None


def permissions(value: Any) -> frozenset[str]:
    """Return the methods that are switched off."""
    expected = f"':vm:' with 'true' or 'false' for some of {', '.join(METHODS)} below it"
    sections = _by_name(value, expected)
    if [*sections] != ["vm"]:
        raise ValueError(expected)
    switches = _by_name(sections["vm"], expected)
    if not {*METHODS}.issuperset(switches) or not all(isinstance(switch, bool) for switch in switches.values()):
        raise ValueError(expected)
    return frozenset(name for name, switch in switches.items() if not switch)


def _by_name(value: Any, expected: str) -> dict[str, Any]:
    """Return a mapping with its keys without colons, each of which may be there once."""
    if isinstance(value, dict):
        named = {key.strip(":"): item for key, item in value.items() if isinstance(key, str)}
        if len(named) == len(value):
            return named
    raise ValueError(expected)


def groups(value: Any) -> tuple[str | int, ...]:
    """Read groups, each by name or id."""
    return () if value is None else tuple(map(_group, listed(value)))


def _group(value: Any) -> str | int:
    number = number_from(value)
    if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
        return number
    if isinstance(number, str) and number and number.isprintable():
        return number
    raise ValueError("a list of names or ids of groups")


def rate(value: Any) -> tuple[int, int]:
    """Read a number and the seconds in which it may be reached."""
    parts = re.fullmatch("([0-9]{1,9})/(s|sec|min|hour)", value, re.ASCII) if isinstance(value, str) else None
    if parts is None or int(parts[1]) == 0:
        raise ValueError('so many in a second, minute or hour, such as "10/min",')
    return int(parts[1]), _SECONDS_OF[parts[2]]


def rate_or_none(value: Any) -> tuple[int, int] | None:
    """Read a rate, or that there is none."""
    if value == NONE:
        return None
    try:
        return rate(value)
    except ValueError as error:
        raise ValueError(f"none, or {error}") from None


def write_rate(rate: tuple[int, int] | None) -> str:
    """Return a number and the seconds in which it may be reached, as `:auth_failures:` is written."""
    if rate is None:
        return NONE
    units = {seconds: unit for unit, seconds in _SECONDS_OF.items()}
    return f"{rate[0]}/{units[rate[1]]}"
