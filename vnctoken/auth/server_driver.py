"""What the drivers of OpenNebula's server logins have in common: small files, and the form of a session string."""

from __future__ import annotations

import base64
import os
import stat
from typing import TYPE_CHECKING, Protocol

from vnctoken.errors import AuthenticationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAX_FILE_BYTES = 65_536


class ServerDriver(Protocol):
    """A server user's credential, and what oned's driver for it wants to be given."""

    def refresh(self) -> None:
        """Look whether the credential has changed. Raises ConfigError, and goes on with the one it had."""

    def session(self, target: str | None, expires: int) -> str:
        """Return a session string with which the server user acts as `target` until a second of the epoch.

        None is the server user himself. Raises AuthenticationError for a name that cannot stand in a session string.
        """


def session_string(user: str, target: str, expires: int, encrypt: Callable[[bytes], bytes]) -> str:
    """Return the session string of a server user who acts as `target`; `encrypt` proves that he made it.

    oned does not compare the target with the encrypted one, so whoever could move the colons could be anybody. Raises
    AuthenticationError for a name that cannot stand in a session string.
    """
    if not (is_name(user) and is_name(target)):
        raise AuthenticationError("A user name with a space, a colon or a control character cannot be logged in")
    proof = encrypt(f"{user}:{target}:{expires}".encode())
    return f"{user}:{target}:{base64.b64encode(proof).decode()}"


def is_name(text: str) -> bool:
    """Whether a text can stand in a session string, where the colon parts, and in a log line."""
    return text != "" and text.isprintable() and " " not in text and ":" not in text


def content(path: Path, expected: str) -> bytes:
    """Return what a small file holds. Raises ConfigError, which says what is `expected`, if it cannot be read."""
    try:
        return _content(path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValueError as error:
        problem = str(error)
    raise ConfigError(f"{path}: {problem}; {expected}")


def _content(path: Path) -> bytes:
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file")
        found = os.read(descriptor, _MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(found) > _MAX_FILE_BYTES:
        raise ValueError(f"is longer than {_MAX_FILE_BYTES} bytes")
    return found
