"""Where things are in the network, as people write it: host names, HOST:PORT, URLs, ZeroMQ endpoints."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

# What Twisted looks up; it refuses underscores, though /etc/hosts may have them.
_HOST_NAME = re.compile(r"(?!.{254})[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\.?")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):([0-9]{1,5})", re.ASCII)
_MAX_PORT = 65535


def is_host(text: str) -> bool:
    """Whether a text is a host name or an IP address, which has no brackets."""
    return bool(_HOST_NAME.fullmatch(text.lower())) or _is_ipv6(text)


def read_address(text: str) -> tuple[str, int]:
    """Return the host and port in HOST:PORT, where an IPv6 address is in brackets; raise ValueError if it is none."""
    parts = _ADDRESS.fullmatch(text)
    if parts is None:
        raise ValueError("no HOST:PORT")
    ipv6, name, port = parts.groups()
    if not (_is_ipv6(ipv6) if ipv6 else _HOST_NAME.fullmatch(name.lower())) or int(port) > _MAX_PORT:
        raise ValueError("no host, or no port")
    return ipv6 or name, int(port)


def write_address(address: tuple[str, int]) -> str:
    """Return HOST:PORT, as `read_address` reads it and URLs have it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_http_url(text: str) -> bool:
    """Whether a text is an http or https URL without user, query and fragment."""
    try:
        parts = urlsplit(text)
        return (
            text.isascii()
            and parts.scheme in ("http", "https")
            and is_host(parts.hostname or "")
            and "@" not in parts.netloc
            and not parts.query
            and not parts.fragment
            and parts.port != 0
        )
    except ValueError:
        return False


def is_tcp_endpoint(text: str) -> bool:
    """Whether a text is a ZeroMQ endpoint to connect to over TCP."""
    try:
        return text.startswith("tcp://") and read_address(text.removeprefix("tcp://"))[1] > 0
    except ValueError:
        return False


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
