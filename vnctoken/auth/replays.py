"""What keeps a signed request from being sent twice: the signatures that have been used."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from twisted.logger import Logger

from vnctoken.auth import CredentialError
from vnctoken.auth.signed import WINDOW_SECONDS

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

REMEMBERED_SECONDS = 2 * WINDOW_SECONDS + 60
"""For how long a signature is remembered: as long as one from a clock that is ahead may count, and a minute."""

REMEMBERED = 100_000
"""How many signatures are remembered. One more is refused: to forget one would allow it to be used again."""

REMEMBERED_PER_USER = 10_000
"""How many of one user's signatures are remembered, so that nobody uses up the room of all."""


class Replays:
    """The signatures that were used, in this process. Only right ones get here: strangers cannot fill it."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._began = clock.seconds()
        # Until when each is remembered, and whose it is; in the order of their use.
        self._used: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._per_user: Counter[str] = Counter()
        self._full = False

    def use(self, user: str, signature: bytes, age: float) -> None:
        """Take note of a user's signature that is right, made `age` seconds ago (negative if his clock is ahead).

        Raises CredentialError if it was used before, or if that cannot be told.
        """
        now = self._clock.seconds()
        self._began = min(self._began, now)
        # Dates are in whole seconds.
        if age > now - self._began + 1:
            raise CredentialError(
                "the request was signed before this service started, and may have been used then; sign it again (and"
                " look after the client's clock if that does not help)"
            )
        self._forget(now)
        key = hashlib.blake2b(signature, digest_size=16).digest()
        if key in self._used:
            raise CredentialError(
                "the request was sent before, and each is good for once; two that are equal within a second need a"
                " signed header, or a parameter, that differs"
            )
        if self._per_user[user] >= REMEMBERED_PER_USER:
            raise CredentialError(
                f"the user has used {REMEMBERED_PER_USER} signatures within {REMEMBERED_SECONDS} seconds"
            )
        self._check_room()
        self._used[key] = (now + REMEMBERED_SECONDS, user)
        self._per_user[user] += 1

    def _check_room(self) -> None:
        if len(self._used) < REMEMBERED:
            self._full = False
            return
        if not self._full:
            self._log.warn(
                "{n} signed requests within {seconds} seconds are all that the door ec2 remembers; more are refused",
                n=len(self._used),
                seconds=REMEMBERED_SECONDS,
            )
        self._full = True
        raise CredentialError("no more signatures can be remembered")

    def _forget(self, now: float) -> None:
        while self._used:
            key = next(iter(self._used))
            end, user = self._used[key]
            if end >= now:
                return
            del self._used[key]
            self._per_user[user] -= 1
            if not self._per_user[user]:
                del self._per_user[user]
