"""The entrance: who calls, by the session string he gives, or by the doors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from vnctoken.arguments import quoted
from vnctoken.auth import OPENNEBULA, Caller, CredentialError
from vnctoken.errors import ApiError, AuthenticationError, VnctokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vnctoken.auth import Claim, Door, HttpRequest
    from vnctoken.auth.guessing import Guessing


class Entrance:
    """Identifies callers.

    `doors` are asked in their order. `sessions` says whether session strings are taken. `strict` is for where there are
    trusted proxies: then nobody else may send what only they may.
    """

    _log = Logger()

    def __init__(
        self, doors: Sequence[Door], guessing: Guessing, *, sessions: bool = True, strict: bool = False
    ) -> None:
        self._doors = doors
        self._guessing = guessing
        self._sessions = sessions
        self._strict = strict

    async def admit(self, session: str, request: HttpRequest) -> Caller:
        """Return who calls: the owner of a session string, whom oned will judge, or whom a door identifies.

        Raises AuthenticationError if nobody does, ApiError if there is no session string and no door but that for
        them, and OnedError if a door could not ask oned.
        """
        if request.presumed and (self._strict or not session):
            self._log.warn(
                "{client} sent {headers}, which only one of :trusted_proxies: may",
                client=request.client,
                headers=", ".join(request.presumed),
            )
            raise AuthenticationError(
                f"This request has the header {request.presumed[0]}, which counts only from a proxy in"
                " :trusted_proxies:, and did not come from one"
            )
        if session:
            if not self._sessions:
                raise AuthenticationError(
                    "Session strings are not taken here (:auth:); leave the session empty, and identify yourself by "
                    + self._names()
                )
            return Caller(OPENNEBULA, user_name(session), session, request.client, request=request.id)
        if not self._doors:
            raise ApiError("Argument 1, the session, must be a non-empty string, but is an empty string")
        return await self._identified(request)

    async def _identified(self, request: HttpRequest) -> Caller:
        if _is_of_another_site(request):
            raise AuthenticationError(
                "A page of another site sent this request, in the name of whoever looks at it; call from a page at this"
                " address, or from no page"
            )
        for door in self._doors:
            claim = self._claim(door, request)
            if claim is None:
                continue
            if door.needs_tls and not request.secure:
                # Not one more door: what he has sent may have been read by others.
                raise AuthenticationError(
                    f"The door {door.name} is for requests over TLS that come through a proxy in :trusted_proxies:;"
                    " this one did not: call the https address"
                )
            try:
                identity = await self._guessing.judged(request.client, claim.account, claim.prove)
            except CredentialError as error:
                self._refused(door, request, claim.account, error)
            else:
                return Caller(door.name, identity.user, identity.session, request.client, identity.vm_id, request.id)
        # The same words for whoever fails: which part was wrong is for the log.
        raise AuthenticationError(f"The session is empty, and nobody is identified by {self._names()}")

    def _claim(self, door: Door, request: HttpRequest) -> Claim | None:
        try:
            return door.claim(request)
        except CredentialError as error:
            self._refused(door, request, "", error)
            return None

    def _refused(self, door: Door, request: HttpRequest, account: str, error: CredentialError) -> None:
        self._log.info(
            "{client} is not let in by {door} as {account}: {reason}",
            client=request.client,
            door=door.name,
            account=shown(account) or "-",
            reason=str(error),
        )

    def _names(self) -> str:
        return ", ".join(door.name for door in self._doors)


def _is_of_another_site(request: HttpRequest) -> bool:
    """Whether a browser says so: it adds passwords and certificates by itself, whatever page has the idea."""
    origins = request.headers.getRawHeaders(b"Origin") or ()
    host = (request.headers.getRawHeaders(b"Host") or [b""])[0].lower()
    return any(origin.lower().partition(b"://")[2] != host for origin in origins)


class Visit:
    """One HTTP request, whose caller is identified once, however many calls it holds: signatures count once."""

    def __init__(self, entrance: Entrance, request: HttpRequest) -> None:
        self._entrance = entrance
        self._request = request
        self._lock = DeferredLock()
        self._outcome: Caller | VnctokenError | None = None

    @property
    def client(self) -> str:
        """The caller's address."""
        return self._request.client

    @property
    def request(self) -> str:
        """What the request is called in logs."""
        return self._request.id

    async def caller(self, session: str) -> Caller:
        """Return who calls. Raises as `Entrance.admit` does."""
        if session:
            return await self._entrance.admit(session, self._request)
        await self._lock.acquire()
        try:
            if self._outcome is None:
                try:
                    self._outcome = await self._entrance.admit("", self._request)
                except VnctokenError as error:
                    self._outcome = error
        finally:
            self._lock.release()
        if isinstance(self._outcome, VnctokenError):
            raise self._outcome
        return self._outcome


def user_name(session: str) -> str:
    """Return the user's name in a session string, fit for a log line.

    It is "" if there is no colon: all of the session may be a secret then.
    """
    name, colon, _ = session.partition(":")
    return shown(name) if colon else ""


def shown(name: str) -> str:
    """Return a name that somebody claims, fit for a log line."""
    return quoted("".join(c if c.isprintable() and not c.isspace() else "?" for c in name))
