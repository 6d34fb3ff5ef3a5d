"""Whose a session string is, by the rules of oned's auth drivers.

It is ``user:password`` (the password begins after the first colon), ``user:login-token``, or that of a server for a
user, ``server:user:token``.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from vnctoken.sandbox import servercipher, serverx509

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.sandbox.accounts import User


def session_owner(session: str, users: Mapping[str, User], *, now: float, server_certificate: bytes) -> User | None:
    """Return whose a session string is, of `users` by their names; None if oned would not authenticate it.

    `now` is in seconds since the epoch, `server_certificate` the one in PEM that the driver `server_x509` knows, empty
    if there is none.

    A user who is disabled is let in by no password of his own, but a server's login for him is good: oned asks only
    whether the server is enabled (``UserPool::authenticate`` and ``authenticate_server`` in its src/um/UserPool.cc).
    Unlike oned, this remembers no session: there what has been good once is good for SESSION_EXPIRATION_TIME.
    """
    name, colon, secret = session.partition(":")
    user = users.get(name)
    if not colon or user is None or not user.enabled:
        return None
    if user.auth_driver.startswith("server"):
        target, _, token = secret.partition(":")
        return users.get(target) if _is_servers(token, user, now, server_certificate) else None
    if any(_is(secret, login.token) and (login.expires == -1 or now < login.expires) for login in user.login_tokens):
        return user
    # The driver `x509` wants certificates that an authority vouches for, and there is none here; `public` lets nobody
    # in who comes himself.
    return user if user.auth_driver == "core" and _is(secret, user.password) else None


def _is_servers(token: str, server: User, now: float, certificate: bytes) -> bool:
    """Return whether a token is of this server and not expired; like oned, do not look at the target in it."""
    if server.auth_driver == "server_cipher":
        text = servercipher.plaintext(token, server.password)
    elif server.auth_driver == "server_x509" and certificate and serverx509.subject(certificate) == server.password:
        text = serverx509.plaintext(token, certificate)
    else:
        text = ""
    user, _, target_and_expiry = text.partition(":")
    expires = target_and_expiry.rpartition(":")[2]
    return user == server.name and expires.isascii() and expires.isdigit() and now < int(expires)


def _is(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
