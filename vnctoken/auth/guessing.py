"""What failures cost: who was wrong too often waits, and oned is not asked for him.

Failures are counted for the client's address and for the account that was claimed, in a token bucket each: so many are
forgiven at once, and one more with every so many seconds. A success takes back what the same account got wrong at the
same address, and no more: neither can anyone clear his address with an account of his own, nor does a user who is busy
clear his account for those who guess at it from elsewhere.

For an hour after a success the account has a bucket of its own at that address: it waits for nobody else's failures
and nobody for its. Or anybody could lock anyone out, and one stale session everyone behind the same web server.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

from vnctoken.auth import CredentialError
from vnctoken.countdowns import MICROSECOND, Countdowns, client_key, name_digest, user_key
from vnctoken.errors import AuthenticationError, AuthorizationError, NoExistsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import IReactorTime

FAMILIAR_SECONDS = 3600.0
"""For how long after a success an account has a bucket of its own at the address."""

_Answer = TypeVar("_Answer")


class Guessing:
    """Counts failures: `limit` are forgiven in `seconds`."""

    def __init__(self, clock: IReactorTime, limit: int, seconds: float) -> None:
        self._interval = seconds / limit
        self._tolerated = self._interval * (limit - 1)
        # The seconds until all failures are forgiven.
        self._clients, self._accounts, self._pairs = (Countdowns(clock) for _ in range(3))
        self._familiar = Countdowns(clock)

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
        if wait > MICROSECOND:
            raise AuthenticationError(
                f"Too many failed attempts to log in (:auth_failures:); try again in {math.ceil(wait)} seconds"
            )

    def _buckets(self, claimant: _Claimant) -> list[tuple[Countdowns, bytes]]:
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
        self.client = client_key(client)
        self.account = user_key(account)
        # For others they are different users, who take back nothing of one another's.
        self.both = name_digest(account) + self.client
