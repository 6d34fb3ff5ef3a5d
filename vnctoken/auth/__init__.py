"""The front doors: who a caller is, told by what his HTTP request carries.

A door is a module of this package, and off unless `:auth:` lists it. Each finds one kind of credential in a request
(`Door.claim`), and proves or refuses it (`Claim.prove`); none of them knows another. What they have in common is
elsewhere: `entrance` asks them in turn, `proxies` says whose headers count, `guessing` what failures cost, and
`admission` asks oned for a VM as the caller.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vnctoken.errors import AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.web.http_headers import Headers

OPENNEBULA = "opennebula"
"""The door of session strings, which oned judges."""

ASSERTIONS = (
    "X-SSL-Client-Cert",
    "SSL_CLIENT_CERT",
    "REMOTE_USER",
    "X-Auth-Username",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
)
"""The headers that count from a trusted proxy only, as whoever writes them is believed."""


class CredentialError(Exception):
    """Raised if a request carries a credential that is wrong, or that cannot be read.

    The text says for the log what is wrong with it, and holds nothing of it. The caller never sees it: he is told the
    same whatever was wrong.
    """


def request_id() -> str:
    """Return what a request is called in the log and in the audit log."""
    return secrets.token_hex(6)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What doors see of a request, and what it is called in logs.

    `uri` is path and query as they were sent. `client` is the caller's address, behind all trusted proxies. `trusted`
    says whether a trusted proxy sent the request, `secure` whether that one got it over TLS, and `presumed` which of
    ASSERTIONS somebody else has sent.
    """

    method: bytes
    uri: bytes = field(repr=False)
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    client: str
    trusted: bool = False
    secure: bool = False
    presumed: tuple[str, ...] = ()
    id: str = field(default_factory=request_id)

    def header(self, name: str) -> str | None:
        """Return the value of a header, None if there is none.

        Raises CredentialError if there are several, of which nobody knows the right one, or if it is not UTF-8.
        """
        values = self.headers.getRawHeaders(name.encode())
        if not values:
            return None
        if len(values) > 1:
            raise CredentialError(f"there are several headers {name}")
        try:
            return values[0].decode()
        except UnicodeDecodeError:
            raise CredentialError(f"the header {name} is not UTF-8") from None

    def asserted(self, *names: str) -> str | None:
        """Return what a trusted proxy says in one of these headers of ASSERTIONS; None if nothing.

        An empty one says nothing, nor does "(null)", which Apache writes for what it does not have. Raises
        CredentialError as `header` does, and if two of them differ.
        """
        if not self.trusted:
            return None
        found = {value for name in names if (value := self.header(name)) not in (None, "", "(null)")}
        if len(found) > 1:
            raise CredentialError(f"the headers {' and '.join(names)} differ")
        return found.pop() if found else None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a caller has proved to be: the user's name, and a session string with which oned knows him.

    With `vm_id` he may have that VM's console and no other.
    """

    user: str
    session: str = field(repr=False)
    vm_id: int | None = None


def acting_for(user: str, session: Callable[[str], str], vm_id: int | None = None) -> Identity:
    """Return the identity of a user for whom the service acts, by what `session` makes of his name.

    Raises CredentialError if his name cannot stand in a session string.
    """
    try:
        return Identity(user, session(user), vm_id)
    except AuthenticationError:
        raise CredentialError("nobody can act for this user: his name cannot stand in a session string") from None


@dataclass(frozen=True, slots=True)
class Claim:
    """A credential that a door has found in a request, not proved yet.

    `account` is whom guesses at it are counted for, such as the user's name; anything the caller wrote, or "".
    `prove` asks whoever knows. It raises CredentialError if the credential is wrong, and OnedError if that could not be
    found out.
    """

    account: str
    prove: Callable[[], Awaitable[Identity]] = field(repr=False)


class Door(Protocol):
    """One way to be let in."""

    name: str
    """What `:auth:` calls it."""

    needs_tls: bool
    """Whether it takes requests only that came over TLS."""

    def claim(self, request: HttpRequest) -> Claim | None:
        """Return the credential that a request carries for this door, None if it carries none.

        Raises CredentialError if it cannot be read. Asks nobody.
        """


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a user that a door has identified, or whoever a session string is for, which oned has not judged yet.

    `client` is his address. With `vm_id` he may have that VM's console and no other. `request` and `method` are for the
    audit log.
    """

    door: str
    user: str
    session: str = field(repr=False)
    client: str
    vm_id: int | None = None
    request: str = ""
    method: str = ""
