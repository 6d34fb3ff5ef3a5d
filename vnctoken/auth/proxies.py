"""Whose word counts: the proxies in front, and where a request came from behind them."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from vnctoken.auth import ASSERTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from twisted.web.http_headers import Headers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX_CLIENT = "unix"
"""What stands for the address of a client that has none: a program at the other end of a Unix socket."""

# Some proxies write the client's port as well.
_HOP = re.compile(r"\[(?P<ipv6>[^\]]+)\](?::[0-9]+)?|(?P<ipv4>[0-9.]+):[0-9]+", re.ASCII)


class Origin(NamedTuple):
    """Where a request came from: the last things that an HttpRequest knows of itself, as that explains them."""

    client: str
    trusted: bool
    secure: bool
    presumed: tuple[str, ...]


class TrustedProxies:
    """The proxies whose headers count. Whoever connects to our Unix socket is one: its file says who may."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def origin(self, peer: str | None, headers: Headers) -> Origin:
        """Return where a request came from that was sent by `peer`, an IP address, or None for our Unix socket.

        The caller is the right-most hop of X-Forwarded-For that is no trusted proxy: what is left of it is his word.
        """
        if peer is not None and not self._trusts(address := _read(peer)):
            return Origin(str(address or peer), trusted=False, secure=False, presumed=_asserted(headers))
        client = UNIX_CLIENT if peer is None else str(_read(peer))
        for hop in _hops(headers):
            if hop is None:
                break
            client = str(hop)
            if not self._trusts(hop):
                break
        secure = headers.getRawHeaders(b"X-Forwarded-Proto") == [b"https"]
        return Origin(client, trusted=True, secure=secure, presumed=())

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _asserted(headers: Headers) -> tuple[str, ...]:
    return tuple(name for name in ASSERTIONS if headers.hasHeader(name))


def _hops(headers: Headers) -> Iterator[Address | None]:
    """Yield the hops from the nearest on, None for what is no address."""
    for line in reversed(headers.getRawHeaders(b"X-Forwarded-For") or ()):
        for hop in reversed(line.split(b",")):
            yield _read(hop.decode("latin-1").strip())


def _read(text: str) -> Address | None:
    if match := _HOP.fullmatch(text):
        text = match["ipv6"] or match["ipv4"]
    with contextlib.suppress(ValueError):
        # A zone, as in fe80::1%eth0, is any text at all, which would get into the log as a part of the address.
        address = ipaddress.ip_address(text.partition("%")[0])
        # A listener at "::" has IPv4 clients, too.
        return getattr(address, "ipv4_mapped", None) or address
    return None
