"""The door `basic`: HTTP Basic (RFC 7617) with an OpenNebula user and password, or login token, which oned judges."""

from __future__ import annotations

import base64
import binascii
import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from vnctoken.auth import Claim, CredentialError, Identity
from vnctoken.errors import AuthenticationError

if TYPE_CHECKING:
    from vnctoken.auth import HttpRequest
    from vnctoken.oned import Oned

_MAX_CHARACTERS = 4096
# RFC 7617 has no control characters, XML none of the others.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ufffe\uffff]")
# What Ruby's URI escape leaves as it is, besides letters, digits, "_", "-", "." and "~".
_LEFT = "!$&'()*+,/:;=?@[]"
_SERVER_DRIVERS = ("server_cipher", "server_x509")


class BasicDoor:
    """Takes users by name and password."""

    name = "basic"
    needs_tls = True

    def __init__(self, oned: Oned) -> None:
        self._oned = oned

    def claim(self, request: HttpRequest) -> Claim | None:
        """Return the user and password that a request carries, None if its Authorization is of another kind, or none.

        Raises CredentialError if they cannot be read. The account is the user's name.
        """
        scheme, _, credentials = (request.header("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        user, colon, password = _decoded(credentials.strip(" ")).partition(":")
        if not (user and colon and password):
            # An LDAP server lets anybody in without a password.
            raise CredentialError("the user or the password is missing")
        return Claim(account=user, prove=partial(self._prove, user, password))

    async def _prove(self, user: str, password: str) -> Identity:
        for name, secret in _spellings(user, password):
            session = f"{name}:{secret}"
            try:
                account = await self._oned.user(session)
            except AuthenticationError:
                continue
            # A server's login reads "serveradmin:target:token", and is for programs that may be anybody.
            if account.driver in _SERVER_DRIVERS or (account.name != name and secret.startswith(f"{account.name}:")):
                raise CredentialError("this is a server's login, not a user's")
            return Identity(account.name, session)
        raise CredentialError("oned knows no such user and password")


def _decoded(credentials: str) -> str:
    if len(credentials) > _MAX_CHARACTERS:
        raise CredentialError(f"the credentials are longer than {_MAX_CHARACTERS} characters")
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except binascii.Error:
        raise CredentialError("the credentials are not base64") from None
    except ValueError:
        raise CredentialError("user and password are not UTF-8, or their base64 is not ASCII") from None
    if _FORBIDDEN.search(text):
        raise CredentialError("the user or the password holds a control character")
    return text


def _spellings(user: str, password: str) -> list[tuple[str, str]]:
    """Return how oned may know a user and password: as they are, or percent-encoded.

    oned rejects white space. Users of LDAP and the like who have such characters are stored as `oneuser encode` writes
    them, and OpenNebula's own servers try both ways, too.
    """
    encoded = (quote(user, safe=_LEFT), quote(password, safe=_LEFT))
    if " " in user or " " in password:
        return [encoded]
    return list(dict.fromkeys([(user, password), encoded]))
