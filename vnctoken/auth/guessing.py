"""What failures cost: who was wrong too often waits, and oned is not asked for him.

Failures are counted for the client's address and for the account that was claimed, in a token bucket each: so many are
forgiven at once, and one more with every so many seconds. A success takes back what the same account got wrong at the
same address, and no more: neither can anyone clear his address with an account of his own, nor does a user who is busy
clear his account for those who guess at it from elsewhere.

For an hour after a success the account has a bucket of its own at that address: it waits for nobody else's failures
and nobody for its. Or anybody could lock anyone out, and one stale session everyone behind the same web server.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from vnctoken.auth import CredentialError
from vnctoken.errors import AuthenticationError, AuthorizationError, NoExistsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import IReactorTime

REMEMBERED = 10_000
"""How many addresses are remembered, accounts, and pairs of both; the one changed longest ago is forgotten then."""

FAMILIAR_SECONDS = 3600.0
"""For how long after a success an account has a bucket of its own at the address."""

# A clock that counts in floats is a little off.
_MICROSECOND = 1e-6

_Answer = TypeVar("_Answer")


class Guessing:
    """Counts failures: `limit` are forgiven in `seconds`."""

    def __init__(self, clock: IReactorTime, limit: int, seconds: float) -> None:
        self._interval = seconds / limit
        self._tolerated = self._interval * (limit - 1)
        # The seconds until all failures are forgiven.
        self._clients, self._accounts, self._pairs = (_Countdowns(clock) for _ in range(3))
        self._familiar = _Countdowns(clock)

    async def judged(self, client: str, account: str, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Return what `ask` returns, which finds out whether a credential of the account's is right.

        AuthenticationError and CredentialError are failures; AuthorizationError and NoExistsError come after a success;
        with anything else nothing was found out. Raises what `ask` raises, and AuthenticationError for who has to wait.
        """
        claimant = _Claimant(client, account)
        self._check(claimant)
        try:
            answer = await ask()
        except (AuthenticationError, CredentialError):
            self._failed(claimant)
            raise
        except (AuthorizationError, NoExistsError):
            self._passed(claimant)
            raise
        self._passed(claimant)
        return answer

    def _check(self, claimant: _Claimant) -> None:
        wait = max(countdown.left(key) for countdown, key in self._buckets(claimant)) - self._tolerated
        if wait > _MICROSECOND:
            raise AuthenticationError(
                f"Too many failed attempts to log in (:auth_failures:); try again in {math.ceil(wait)} seconds"
            )

    def _buckets(self, claimant: _Claimant) -> list[tuple[_Countdowns, bytes]]:
        """Return where failures count. The pair's tell what of the others a success takes back."""
        if not claimant.account:
            return [(self._clients, claimant.client)]
        if self._familiar.left(claimant.both):
            return [(self._pairs, claimant.both)]
        return [
            (self._clients, claimant.client),
            (self._accounts, claimant.account),
            (self._pairs, claimant.both),
        ]

    def _failed(self, claimant: _Claimant) -> None:
        # Of guesses that were all asked at once, right and wrong ones get the same answer once there are too many.
        self._check(claimant)
        for countdown, key in self._buckets(claimant):
            countdown.start(key, countdown.left(key) + self._interval)

    def _passed(self, claimant: _Claimant) -> None:
        self._check(claimant)
        if claimant.account:
            own = self._pairs.left(claimant.both)
            for countdown, key in self._buckets(claimant):
                countdown.start(key, countdown.left(key) - own)
            self._familiar.start(claimant.both, FAMILIAR_SECONDS)


class _Claimant:
    """Under which keys failures are remembered: the address's, the account's (empty if there is none), and both's."""

    __slots__ = ("account", "both", "client")

    def __init__(self, client: str, account: str) -> None:
        # Who has one IPv6 address has all of its network.
        self.client = ipaddress.IPv6Address(client).packed[:8] + b"/64" if ":" in client else client.encode()
        # Spellings of one name, for some: an LDAP server takes ALICE for alice, and oned's driver for it %61lice.
        self.account = _digest(" ".join(unquote(account).casefold().split())) if account else b""
        # For others they are different users, who take back nothing of one another's.
        self.both = _digest(account) + self.client


def _digest(name: str) -> bytes:
    # Strangers write names of any length.
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


class _Countdowns:
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
        if seconds > _MICROSECOND:
            self._ends[key] = self._clock.seconds() + seconds
            if len(self._ends) > REMEMBERED:
                self._ends.popitem(last=False)
