"""The door `ec2`: requests signed as for Amazon's EC2, version 4, or 2 for old tools.

The access key is the user's name, and the secret his password as oned stores it, its hexadecimal SHA-256 (as in
OpenNebula's econe-server, src/cloud/common/CloudAuth/EC2CloudAuth.rb, which also took the users of other drivers).
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from vnctoken.auth import Claim, CredentialError, Identity, acting_for, sigv2, sigv4
from vnctoken.auth.replays import Replays

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import IReactorTime

    from vnctoken.auth import HttpRequest
    from vnctoken.auth.signed import SignedRequest
    from vnctoken.auth.users import Users
    from vnctoken.user import User

_STORED_PASSWORD = re.compile("[0-9a-f]{64}")


class Ec2Door:
    """Lets in whom oned knows by password, by a request that was signed with it: once each, and within 15 minutes.

    `now` returns the second of the epoch, by which signatures are dated; `clock` is for how long they are remembered.
    `host` is what requests must be signed for, as in a URL; None: whatever they were sent to. `session` returns a
    session string for a user.
    """

    name = "ec2"
    needs_tls = False

    def __init__(
        self,
        *,
        users: Callable[[], Awaitable[Users]],
        session: Callable[[str], str],
        now: Callable[[], float],
        clock: IReactorTime,
        host: str | None,
    ) -> None:
        self._users = users
        self._session = session
        self._now = now
        self._host = host
        self._replays = Replays(clock)
        self._nobodys_secret = secrets.token_hex(32)

    def claim(self, request: HttpRequest) -> Claim | None:
        """Return what a request's signature claims, None if it has none.

        Raises CredentialError if it cannot be read, or leaves out what it must cover.
        """
        in_header, in_query = sigv4.carried(request), sigv2.carried(request)
        if not in_header and not in_query:
            return None
        if in_header and in_query:
            raise CredentialError("there are signatures of both versions, and nobody knows the right one")
        signed = sigv4.read(request, self._host) if in_header else sigv2.read(request, self._host)
        return Claim(signed.access_key, lambda: self._prove(signed))

    async def _prove(self, signed: SignedRequest) -> Identity:
        user = (await self._users()).by_name(signed.access_key)
        now = self._now()
        if now < signed.not_before:
            raise CredentialError(f"the signature counts only in {signed.not_before - now:.0f} seconds{_CLOCKS}")
        if now > signed.not_after:
            raise CredentialError(f"the signature expired {now - signed.not_after:.0f} seconds ago{_CLOCKS}")
        # As much work for a user that there is not.
        known = user if user is not None and _has_secret(user) else None
        right = signed.is_by(known.password if known else self._nobodys_secret)
        if known is None or not right:
            expected = f"; requests must be signed for the host {self._host}" if self._host else ""
            raise CredentialError(
                f"the signature is wrong, or there is no enabled user of this name with a password{expected}"
            )
        self._replays.use(known.name, signed.signature, now - signed.made)
        return acting_for(known.name, self._session)


_CLOCKS = "; it is good for 15 minutes before and after its date: are both clocks right?"


def _has_secret(user: User) -> bool:
    # What other drivers store in its place is no secret: a DN, a name.
    return user.driver == "core" and _STORED_PASSWORD.fullmatch(user.password) is not None
