"""Seconds that run down, by keys, and under which keys addresses and users are counted."""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

REMEMBERED = 10_000
"""How many keys are remembered; the one changed longest ago is forgotten then."""

MICROSECOND = 1e-6
"""What a clock that counts in floats may be off."""

_USUAL_CHARACTERS = 64


class Countdowns:
    """Seconds that run down, by keys."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def left(self, key: bytes) -> float:
        """Return the seconds that are left, 0 for an unknown key."""
        return max(0.0, self._ends.get(key, 0.0) - self._clock.seconds())

    def start(self, key: bytes, seconds: float) -> None:
        """Let so many seconds run down."""
        self._ends.pop(key, None)
        if seconds > MICROSECOND:
            self._ends[key] = self._clock.seconds() + seconds
            if len(self._ends) > REMEMBERED:
                self._ends.popitem(last=False)


@lru_cache(REMEMBERED)
def client_key(client: str) -> bytes:
    """Return under which key an address is counted: who has one IPv6 address has all of its network (/64)."""
    if ":" not in client:
        return client.encode()
    address = ipaddress.IPv6Address(client)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped).encode()
    return address.packed[:8] + b"/64"


def user_key(name: str) -> bytes:
    """Return under which key a user is counted, b"" for no name.

    Spellings of one name, for some, are one: an LDAP server takes ALICE for alice, and oned's driver for it %61lice.
    """
    # Long names are a stranger's, who would fill the memory with them.
    return _key_of_usual(name) if len(name) <= _USUAL_CHARACTERS else _key_of(name)


def name_digest(name: str) -> bytes:
    """Return 16 bytes that stand for a name: strangers write names of any length."""
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


def _key_of(name: str) -> bytes:
    # The name in a session string comes as a log line has it: with a ? for each space.
    return name_digest(" ".join(unquote(name).replace("?", " ").casefold().split())) if name else b""


_key_of_usual = lru_cache(REMEMBERED)(_key_of)
