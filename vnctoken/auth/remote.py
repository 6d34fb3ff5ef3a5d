"""The door `remote`: users whom the proxy has logged in, by Kerberos, SAML or anything else that it knows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vnctoken.auth import Claim, CredentialError, Identity, acting_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.auth import HttpRequest
    from vnctoken.auth.users import Users

_MAX_CHARACTERS = 1024


class RemoteDoor:
    """Takes users by the name that a trusted proxy gives them, such as "alice@EXAMPLE.ORG".

    The name is the PASSWORD of a user of the driver `public`. `session` returns a session string for a user's name.
    """

    name = "remote"
    needs_tls = True

    def __init__(self, *, users: Callable[[], Awaitable[Users]], session: Callable[[str], str]) -> None:
        self._users = users
        self._session = session

    def claim(self, request: HttpRequest) -> Claim | None:
        """Return the name that a trusted proxy gives the caller, None if it gives none.

        Raises CredentialError if it cannot be read. The account is that name.
        """
        remote_name = request.asserted("REMOTE_USER", "X-Auth-Username")
        if remote_name is None:
            return None
        if len(remote_name) > _MAX_CHARACTERS:
            raise CredentialError(f"the name is longer than {_MAX_CHARACTERS} characters")
        if not remote_name.isprintable():
            raise CredentialError("the name holds a control character")
        return Claim(account=remote_name, prove=partial(self._prove, remote_name))

    async def _prove(self, remote_name: str) -> Identity:
        user = (await self._users()).by_remote_name(remote_name)
        if user is None:
            raise CredentialError("no user of the driver public has this name")
        return acting_for(user.name, self._session)
