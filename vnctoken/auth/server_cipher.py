"""OpenNebula's `server_cipher`: the service and oned share a password, and AES with it proves a login.

The password is that of the user `serveradmin`, which OpenNebula writes into `sunstone_auth`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from vnctoken.auth.server_driver import content, is_name, session_string
from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BITS = 128
_EXPECTED = (
    "one line 'serveradmin:PASSWORD' is expected that the service's user can read, as in OpenNebula's sunstone_auth"
)


class ServerCipher:
    """The user and password in a file. Raises ConfigError if the file cannot be read or holds none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.refresh()

    def __repr__(self) -> str:
        return f"<ServerCipher of {self._user!r} in {self._path}>"

    def refresh(self) -> None:
        """Read the file again. Raises ConfigError, and goes on with the user and password read last."""
        self._user, self._password = _read(self._path)

    def session(self, target: str | None, expires: int) -> str:
        """Return a session string, as `server_session` does; None is the server user himself."""
        return server_session(self._user, self._password, self._user if target is None else target, expires)


def server_session(user: str, password: str, target: str, expires: int) -> str:
    """Return the session string with which a server user acts as `target` until a second of the epoch.

    oned's `server_cipher` driver wants AES-256-CBC with PKCS #7 padding; key and IV are from the hexadecimal SHA-256 of
    the password. Raises AuthenticationError for a name that cannot stand in a session string.
    """
    secret = hashlib.sha256(password.encode()).hexdigest().encode()

    def encrypt(text: bytes) -> bytes:
        padder = PKCS7(_BLOCK_BITS).padder()
        padded = padder.update(text) + padder.finalize()
        encryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[:16])).encryptor()
        return encryptor.update(padded) + encryptor.finalize()

    return session_string(user, target, expires, encrypt)


def _read(path: Path) -> tuple[str, str]:
    """Return the user and password in a file. Raises ConfigError, which holds nothing of its content."""
    found = content(path, _EXPECTED)
    try:
        return _parsed(found)
    except UnicodeDecodeError:
        problem = "is no text in UTF-8"
    except ValueError as error:
        problem = str(error)
    raise ConfigError(f"{path}: {problem}; {_EXPECTED}")


def _parsed(written: bytes) -> tuple[str, str]:
    text = written.decode().rstrip()
    user, _, password = text.partition(":")
    if not text:
        raise ValueError("is empty")
    if len(text.splitlines()) > 1:
        raise ValueError("has more than one line")
    if not password:
        raise ValueError("has no password after a colon")
    if not is_name(user):
        raise ValueError("has no user name, or one with a space or a control character")
    return user, password
