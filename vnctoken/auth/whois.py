"""Who the owner of a session is in oned: his number and name, for the audit log."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from vnctoken.auth import OPENNEBULA
from vnctoken.errors import VnctokenError
from vnctoken.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from twisted.internet.interfaces import IReactorTime

    from vnctoken.auth import Caller
    from vnctoken.auth.guessing import Guessing
    from vnctoken.oned import Oned
    from vnctoken.user import User

REMEMBERED = 1000
"""How many sessions are remembered; the one asked about longest ago is forgotten then."""

SECONDS = 60.0
"""For how long oned is not asked again about the same session."""


class Whois:
    """Asks oned for the accounts of callers, once a minute for each session.

    The session of a caller who was refused before oned has judged it is a guess as any other, and counts as one.
    """

    def __init__(self, oned: Oned, guessing: Guessing, clock: IReactorTime) -> None:
        self._oned = oned
        self._guessing = guessing
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, User]] = OrderedDict()
        self._questions: Sharing[bytes, User] = Sharing()

    async def user(self, caller: Caller) -> User | None:
        """Return the account of a caller; None if oned does not tell it now, or not to him."""
        key = hashlib.blake2b(caller.session.encode(errors="surrogatepass"), digest_size=16).digest()
        until, user = self._known.get(key, (0.0, None))
        if user is not None and self._clock.seconds() < until:
            return user
        try:
            user = await self._judged(caller, key)
        except VnctokenError:
            return None
        self._known.pop(key, None)
        self._known[key] = (self._clock.seconds() + SECONDS, user)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return user

    async def _judged(self, caller: Caller, key: bytes) -> User:
        def ask() -> Awaitable[User]:
            return self._questions.share(key, lambda: self._oned.user(caller.session))

        if caller.door != OPENNEBULA:
            return await ask()
        return await self._guessing.judged(caller.client, caller.user, ask)


async def nobody(_caller: Caller) -> User | None:
    """Return None: nothing is written down that would name an account."""
    return None
