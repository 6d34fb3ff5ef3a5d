"""The service's own login at oned, as OpenNebula's other servers have one: `server_cipher`, AES with a shared password.

The password is that of the user `serveradmin`, which OpenNebula writes into `sunstone_auth`. A login is good for half
an hour by oned's clock.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from twisted.logger import Logger

from vnctoken.errors import AuthenticationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOGIN_SECONDS = 1800
"""How long a login is good; Sunstone's `expire_delta`."""

RENEWAL_SECONDS = 300
"""How long before its end a login is replaced; Sunstone's `expire_margin`."""

FILES = ("vnctoken_auth", "sunstone_auth")
"""Where the user and password are, the first that there is."""

_MAX_FILE_BYTES = 4096
_BLOCK_BITS = 128


class LoginUnavailableError(ConfigError):
    """Raised if the package is missing that makes session strings of a login. The text says what to install."""


class ServerLogin:
    """A server user's name and password, and the session strings made of them.

    The file is read again for each session string, so a changed password counts at once. If it cannot be read any more,
    the user and password read last are used on: oned judges them anyway.
    """

    _log = Logger()

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._user, self._password = _read(path)
        self._expires = 0
        self._trouble = False

    @classmethod
    def load(cls, folder: Path, now: Callable[[], float]) -> ServerLogin | None:
        """Return the login in a folder, None if there is none. `now` returns the seconds of the epoch by the clock.

        Raises ConfigError if the file cannot be read or holds no login, and its subclass LoginUnavailableError if
        cryptography is not installed.
        """
        for name in FILES:
            path = folder / name
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ConfigError(f"{path}: cannot be read ({error.strerror}); {_EXPECTED}") from None
            login = cls(path, now)
            login.session()
            return login
        return None

    def __repr__(self) -> str:
        return f"<ServerLogin of {self._user!r} in {self._path}>"

    def session(self) -> str:
        """Return a session string for the server user himself, good for another five minutes at least."""
        self._refresh()
        now = self._now()
        # More than LOGIN_SECONDS are left if the clock was set back; that login would live for as much longer.
        if not RENEWAL_SECONDS < self._expires - now <= LOGIN_SECONDS:
            self._expires = int(now) + LOGIN_SECONDS
        return server_session(self._user, self._password, self._user, self._expires)

    def _refresh(self) -> None:
        try:
            self._user, self._password = _read(self._path)
        except ConfigError as error:
            if not self._trouble:
                self._log.warn("{reason}; the login read before is used on", reason=str(error))
            self._trouble = True
        else:
            self._trouble = False


def server_session(user: str, password: str, target: str, expires: int) -> str:
    """Return the session string with which a server user acts as `target` until a second of the epoch.

    oned's `server_cipher` driver wants AES-256-CBC with PKCS #7 padding; key and IV are from the hexadecimal SHA-256 of
    the password. Raises AuthenticationError for a name that cannot stand in a session string, and LoginUnavailableError
    if cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415 (an extra)
        from cryptography.hazmat.primitives.padding import PKCS7  # noqa: PLC0415 (an extra)
    except ImportError:
        raise LoginUnavailableError("OpenNebula's server login needs cryptography: install vnctoken[login]") from None
    if not (_is_name(user) and _is_name(target)):
        raise AuthenticationError("A user name with a space, a colon or a control character cannot be logged in")
    secret = hashlib.sha256(password.encode()).hexdigest().encode()
    padder = PKCS7(_BLOCK_BITS).padder()
    padded = padder.update(f"{user}:{target}:{expires}".encode()) + padder.finalize()
    encryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[:16])).encryptor()
    encrypted = encryptor.update(padded) + encryptor.finalize()
    return f"{user}:{target}:{base64.b64encode(encrypted).decode()}"


_EXPECTED = (
    "one line 'serveradmin:PASSWORD' is expected that the service's user can read, as in OpenNebula's sunstone_auth"
)


def _read(path: Path) -> tuple[str, str]:
    """Return the user and password in a file. Raises ConfigError, which holds nothing of its content."""
    try:
        user, password = _parsed(_content(path))
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        problem = "is no text in UTF-8"
    except ValueError as error:
        problem = str(error)
    else:
        return user, password
    raise ConfigError(f"{path}: {problem}; {_EXPECTED}")


def _content(path: Path) -> bytes:
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file")
        return os.read(descriptor, _MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _parsed(content: bytes) -> tuple[str, str]:
    text = content.decode().rstrip()
    user, _, password = text.partition(":")
    if not text:
        raise ValueError("is empty")
    if len(text.splitlines()) > 1:
        raise ValueError("has more than one line")
    if not password:
        raise ValueError("has no password after a colon")
    if not _is_name(user):
        raise ValueError("has no user name, or one with a space or a control character")
    return user, password


def _is_name(text: str) -> bool:
    """Whether a text can stand in a session string, where the colon parts, and in a log line."""
    return text != "" and text.isprintable() and " " not in text and ":" not in text
