"""What a token opens, told at the moment it is used: single use, client binding and revocation are exact here.

Two ask. The websocket proxy asks where a token leads; that uses the token, but does not say who connects. So, where
tokens are for one client each, the web server in front asks before it: may this address use this token? If so, the
token is admitted until the proxy's own question, which follows at once.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from vnctoken.decisions import UNAUDITED, Decision, about, note
from vnctoken.errors import AuditError, OnedError, TokenStoreError, VnctokenError
from vnctoken.measures import UNMEASURED
from vnctoken.tokens import fingerprint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.decisions import Audit
    from vnctoken.measures import Measures
    from vnctoken.tokens import Grant, LiveToken, TokenStore

ADMISSION_SECONDS = 5.0
"""For how long a token is admitted, if the reuse window is not longer: websockify forks before it asks."""

MAX_ADMISSIONS = 4096
"""How many tokens are admitted at a time; the oldest gives way."""

MAX_TOKEN_LENGTH = 4096
"""How many characters a token may have; one that carries its target (JWT) has 1,500 or so."""

_DOOR = "resolver"


class _RefusedError(Exception):
    """Raised if a token opens nothing now; says why, for the log."""


@dataclass
class _Question:
    """What the log says of one question."""

    token: str
    vm_id: int | str = "-"
    client: str = ""


class Resolver:
    """Tells where tokens lead, without HTTP.

    A token for a single use may be used again within `reuse_window` seconds of the first time, as noVNC retries.
    `verify` tells whether a VM still has its console at the token's host and port, by asking oned, and raises
    VnctokenError if that cannot be told; with None, oned is not asked. Both may be changed at any time. `now` is in
    seconds and never jumps.
    """

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        store: TokenStore,
        now: Callable[[], float],
        *,
        reuse_window: float,
        verify: Callable[[LiveToken], Awaitable[bool]] | None,
        measures: Measures = UNMEASURED,
        audit: Audit = UNAUDITED,
    ) -> None:
        self.reuse_window = reuse_window
        self.verify = verify
        self._store = store
        self._now = now
        self._measures = measures
        self._audit = audit
        # Until when, and for which client, by the token's digest; the oldest first.
        self._admitted: dict[str, tuple[float, str]] = {}

    async def resolve(self, token: str) -> tuple[str, int] | None:
        """Return the host and port that a token opens, None for none, and take note that it was used.

        A token that is for one client opens nothing unless it was admitted just now. Raises VnctokenError if the store
        or oned cannot be asked, or the audit log not written.
        """
        question = _Question(fingerprint(token))
        grant = await self._logged(question, "opened", self._opened(token, question))
        return None if grant is None else (grant.host, grant.port)

    async def admit(self, token: str, client: str) -> bool:
        """Return whether the client at an address may use a token; if so, the proxy's question may follow.

        This neither uses the token nor asks oned: the proxy's question does. Raises as `resolve` does.
        """
        question = _Question(fingerprint(token), client=client)
        return await self._logged(question, "admitted", self._admitted_for(client, token, question)) is not None

    async def _opened(self, token: str, question: _Question) -> Grant:
        found = await self._found(token, question)
        until, question.client = self._admitted.get(found.digest, (0.0, ""))
        if until <= self._now():
            question.client = ""
            if found.grant.client:
                raise _RefusedError("for one client, and the web server did not ask for one")
        if self.verify is not None and not await self.verify(found):
            problem = "the VM's console is no longer there"
            if self._store.revocable and await self._store.revoke(found.grant.vm_id, frozenset({found.digest})):
                note(self._audit, about(found, "revoked", problem))
            raise _RefusedError(problem)
        used = await self._store.use(token, self.reuse_window)
        if used is None:
            raise _RefusedError("used up, or taken back just now")
        decision = about(used, "resolved", "")
        self._audit.record(replace(decision, door=_DOOR, client=question.client))
        return used.grant

    async def _admitted_for(self, client: str, token: str, question: _Question) -> Grant:
        found = await self._found(token, question)
        if found.grant.client and not _same_address(found.grant.client, client):
            raise _RefusedError("for another client")
        self._remember(found.digest, client)
        return found.grant

    async def _found(self, token: str, question: _Question) -> LiveToken:
        found = await self._store.find(token) if len(token) <= MAX_TOKEN_LENGTH else None
        if found is None:
            raise _RefusedError("unknown, expired or taken back")
        question.vm_id = found.grant.vm_id
        return found

    def _remember(self, digest: str, client: str) -> None:
        now = self._now()
        self._admitted.pop(digest, None)
        # All last equally long, so that the first is the first to end.
        while self._admitted:
            oldest, (until, _) = next(iter(self._admitted.items()))
            if until > now and len(self._admitted) < MAX_ADMISSIONS:
                break
            del self._admitted[oldest]
        # Also where the reuse window is 0: it begins with the first use, which is yet to come.
        self._admitted[digest] = now + max(self.reuse_window, ADMISSION_SECONDS), client

    async def _logged(self, question: _Question, outcome: str, judging: Awaitable[Grant]) -> Grant | None:
        """Return the grant of a token, None if it was refused, and log that in one line."""
        line = "resolver token={question.token} vm={question.vm_id} "
        try:
            try:
                grant = await judging
            except _RefusedError as refused:
                self._log.info(line + "refused reason={reason}", question=question, reason=str(refused))
                self._audit.record(_refusal(question, str(refused)))
                self._measures.resolved("refused")
                return None
        except CancelledError:
            self._log.info(line + "cancelled: who asked went away", question=question)
            raise
        except VnctokenError as error:
            self._log.error(line + "not known reason={reason}", question=question, reason=_reason(error))
            self._measures.resolved("unknown")
            raise
        self._log.info(line + "{outcome}", question=question, outcome=outcome)
        self._measures.resolved(outcome)
        return grant


def _refusal(question: _Question, reason: str) -> Decision:
    vm_id = question.vm_id if isinstance(question.vm_id, int) else None
    return Decision("refused", door=_DOOR, client=question.client, vm_id=vm_id, token=question.token, reason=reason)


def _reason(error: VnctokenError) -> str:
    """Tell the log what happened in our own words, as oned's text may repeat what it was asked."""
    if isinstance(error, AuditError | OnedError | TokenStoreError):
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
