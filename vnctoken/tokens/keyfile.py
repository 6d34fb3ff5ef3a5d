"""A file with a symmetric key, as websockify's JWTTokenApi plugin reads it: 256 bits in base64url.

JWTTokenApi reads the file for each connection, and so do we for each token: a file that was replaced counts at once, on
both sides. A file that went bad is not made good by the key that was in it: websockify does not have that any more, and
a key may be gone because it leaked.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY_CHARACTERS = 43
_MAX_FILE_BYTES = 4096


class KeyFile:
    """One of `:jwt_key_files:`. `make` is jwcrypto's JWK. Raises ConfigError if there is no key in the file."""

    _log = Logger()

    def __init__(self, path: str, make: Callable[..., Any]) -> None:
        self._path = path
        self._make = make
        self._content: bytes | None = None
        self._key: Any = None
        self._trouble = ""
        try:
            self._mode = self._read()
        except _UnusableError as unusable:
            raise ConfigError(f":jwt_key_files: {path} {unusable}; {expected(path)}") from None

    def key(self) -> Any:
        """Return the key that is in the file now, None if there is none. What is wrong with it is logged once."""
        try:
            self._read()
        except _UnusableError as unusable:
            if self._trouble != str(unusable):
                self._trouble = str(unusable)
                self._log.error(
                    "JWT key file {path} {trouble}; no token is made or read with it until that is put right",
                    path=self._path,
                    trouble=self._trouble,
                )
            return None
        if self._trouble:
            self._trouble = ""
            self._log.info("JWT key file {path} can be used again", path=self._path)
        return self._key

    def warnings(self) -> list[str]:
        """Return a warning if others could read or write the file when the service started."""
        if not self._mode & stat.S_IRWXO:
            return []
        warning = (
            f":jwt_key_files: {self._path} has mode {self._mode:04o}: with the key, other users of this machine can"
            f" open every console; expected 0600 or 0640, as 'chmod o= {shlex.quote(self._path)}' makes it"
        )
        return [warning]

    def _read(self) -> int:
        """Read the key if it changed, and return the file's mode."""
        content, mode = _content(self._path)
        if content != self._content:
            self._key = self._make(kty="oct", k=_checked(content))
            self._content = content
        return mode


class _UnusableError(Exception):
    """Raised if there is no key in a file. The text goes on after the file's name, and holds nothing of its content."""


def expected(path: str) -> str:
    """Return what a key file has to be, with a command that makes or replaces it."""
    file, new = shlex.quote(path), shlex.quote(path + ".new")
    return (
        f"a key of 256 random bits is expected, {_KEY_CHARACTERS} characters of base64url without a line break, that"
        " this service and websockify can read; to make or replace it: (umask 077;"
        f" head -c 32 /dev/urandom | basenc --base64url -w 0 > {new} && chown oneadmin {new} && mv {new} {file})"
    )


def _content(path: str) -> tuple[bytes, int]:
    """Return the start of a file, and its mode."""
    try:
        # Opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _UnusableError("is not a regular file")
            return os.read(descriptor, _MAX_FILE_BYTES), stat.S_IMODE(mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _UnusableError(f"cannot be read ({error.strerror})") from None


def _checked(content: bytes) -> str:
    """Return a key as jwcrypto takes it, if websockify can read it too."""
    if not content:
        raise _UnusableError("is empty")
    if content.startswith(b"-----BEGIN"):
        raise _UnusableError("holds a key in PEM, but only symmetric keys are supported")
    if content[-1:].isspace():
        raise _UnusableError("ends with a line break or a space, with which websockify does not read the key")
    if not re.fullmatch(rb"[A-Za-z0-9_-]+={0,2}", content):
        raise _UnusableError("holds other characters than letters, digits, '-' and '_'")
    bare = content.rstrip(b"=")
    if len(bare) != _KEY_CHARACTERS or len(content) > _KEY_CHARACTERS + 1:
        raise _UnusableError(f"holds {len(bare) * 6 // 8 * 8} bits in {len(content)} characters")
    return bare.decode("ascii")
