"""What a token opens, told at the moment it is used: single use, client binding and revocation are exact here.

Two ask. The websocket proxy asks where a token leads; that uses the token, but does not say who connects. So, where
tokens are for one client each, the web server in front asks before it: may this address use this token? If so, the
token is admitted until the proxy's own question, which follows at once.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from vnctoken.errors import OnedError, TokenStoreError, VnctokenError
from vnctoken.tokens import fingerprint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.tokens import Grant, LiveToken, TokenStore

ADMISSION_SECONDS = 5.0
"""For how long a token is admitted, if the reuse window is not longer: websockify forks before it asks."""

MAX_ADMISSIONS = 4096
"""How many tokens are admitted at a time; the oldest gives way."""

MAX_TOKEN_LENGTH = 4096
"""How many characters a token may have; one that carries its target (JWT) has 1,500 or so."""


class _RefusedError(Exception):
    """Raised if a token opens nothing now; says why, for the log."""


@dataclass
class _Question:
    """What the log says of one question."""

    token: str
    vm_id: int | str = "-"


class Resolver:
    """Tells where tokens lead, without HTTP.

    A token for a single use may be used again within `reuse_window` seconds of the first time, as noVNC retries.
    `verify` tells whether a VM still has its console at the token's host and port, by asking oned, and raises
    VnctokenError if that cannot be told; with None, oned is not asked. `now` is in seconds and never jumps.
    """

    _log = Logger()

    def __init__(
        self,
        store: TokenStore,
        now: Callable[[], float],
        *,
        reuse_window: float,
        verify: Callable[[LiveToken], Awaitable[bool]] | None,
    ) -> None:
        self._store = store
        self._now = now
        self._reuse_window = reuse_window
        self._verify = verify
        # Until when, by the token's digest; the oldest first.
        self._admitted: dict[str, float] = {}

    async def resolve(self, token: str) -> tuple[str, int] | None:
        """Return the host and port that a token opens, None for none, and take note that it was used.

        A token that is for one client opens nothing unless it was admitted just now. Raises VnctokenError if the store
        or oned cannot be asked.
        """
        question = _Question(fingerprint(token))
        grant = await self._logged(question, "opened", self._opened(token, question))
        return None if grant is None else (grant.host, grant.port)

    async def admit(self, token: str, client: str) -> bool:
        """Return whether the client at an address may use a token; if so, the proxy's question may follow.

        This neither uses the token nor asks oned: the proxy's question does. Raises TokenStoreError if the store cannot
        be asked.
        """
        question = _Question(fingerprint(token))
        return await self._logged(question, "admitted", self._admitted_for(client, token, question)) is not None

    async def _opened(self, token: str, question: _Question) -> Grant:
        found = await self._found(token, question)
        if found.grant.client and self._admitted.get(found.digest, 0) <= self._now():
            raise _RefusedError("for one client, and the web server did not ask for one")
        if self._verify is not None and not await self._verify(found):
            if self._store.revocable:
                await self._store.revoke(found.grant.vm_id, frozenset({found.digest}))
            raise _RefusedError("the VM's console is no longer there")
        used = await self._store.use(token, self._reuse_window)
        if used is None:
            raise _RefusedError("used up, or taken back just now")
        return used.grant

    async def _admitted_for(self, client: str, token: str, question: _Question) -> Grant:
        found = await self._found(token, question)
        if found.grant.client:
            if not _same_address(found.grant.client, client):
                raise _RefusedError("for another client")
            self._remember(found.digest)
        return found.grant

    async def _found(self, token: str, question: _Question) -> LiveToken:
        found = await self._store.find(token) if len(token) <= MAX_TOKEN_LENGTH else None
        if found is None:
            raise _RefusedError("unknown, expired or taken back")
        question.vm_id = found.grant.vm_id
        return found

    def _remember(self, digest: str) -> None:
        now = self._now()
        self._admitted.pop(digest, None)
        # All last equally long, so that the first is the first to end.
        while self._admitted:
            oldest, until = next(iter(self._admitted.items()))
            if until > now and len(self._admitted) < MAX_ADMISSIONS:
                break
            del self._admitted[oldest]
        # Also where the reuse window is 0: it begins with the first use, which is yet to come.
        self._admitted[digest] = now + max(self._reuse_window, ADMISSION_SECONDS)

    async def _logged(self, question: _Question, outcome: str, judging: Awaitable[Grant]) -> Grant | None:
        """Return the grant of a token, None if it was refused, and log that in one line."""
        line = "resolver token={question.token} vm={question.vm_id} "
        try:
            grant = await judging
        except _RefusedError as refused:
            self._log.info(line + "refused reason={reason}", question=question, reason=str(refused))
            return None
        except CancelledError:
            self._log.info(line + "cancelled: who asked went away", question=question)
            raise
        except VnctokenError as error:
            self._log.error(line + "not known reason={reason}", question=question, reason=_reason(error))
            raise
        self._log.info(line + "{outcome}", question=question, outcome=outcome)
        return grant


def _reason(error: VnctokenError) -> str:
    """Tell the log what happened in our own words, as oned's text may repeat what it was asked."""
    if isinstance(error, OnedError | TokenStoreError):
        return str(error)
    return f"oned does not tell the service about the VM ({error.code.name})"


def _same_address(one: str, other: str) -> bool:
    """Whether two texts are the same IP address, however it is written; what is no address is none."""
    try:
        return _address(one) == _address(other)
    except ValueError:
        return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.strip())
    return getattr(address, "ipv4_mapped", None) or address
