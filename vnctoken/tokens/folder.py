"""The token folder that websockify reads: a file per VM, a line `token: host:port` in it.

Every websocket connection reads every file there, and OpenNebula's copy of websockify breaks on anything that is
no complete token file, for everybody. So a file is written in a folder beside it and moved in whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING

from vnctoken.errors import ConfigError, TokenStoreError
from vnctoken.tokens.moving import move_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class TokenFolder:
    """Keeps tokens where websockify's TokenFile plugin finds them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Beside the folder, as its very listing is the readers'; on the same filesystem, for rename(2).
        self._incoming = path.with_name(path.name + ".new")

    def prepare(self) -> list[str]:
        """Make the folders if they are missing, check that tokens can be moved in, and forget half-written ones.

        Returns warnings. Raises ConfigError if tokens cannot be written.
        """
        with self._explained():
            for folder in (self._path, self._incoming):
                folder.mkdir(mode=0o700, exist_ok=True)
            for leftover in self._incoming.iterdir():
                leftover.unlink()
            _write(f"{self._incoming}/probe", b"")
            os.unlink(f"{self._incoming}/probe")
            if not os.access(self._path, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
            self._probe_rename()
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & stat.S_IRWXO:
            warning = (
                f":token_folder_name: {self._path} has mode {mode:04o}: other users can look into it;"
                f" expected 0700, as 'chmod 700 {self._path}' makes it"
            )
            return [warning]
        return []

    def put(self, vm_id: int, token: str, host: str, port: int) -> None:
        """Make `token` the token that opens host:port, in place of the VM's earlier ones.

        Raises TokenStoreError if that is not possible; what was there before is then still there.
        """
        name = f"one-{vm_id}"
        target = f"{self._path}/{name}"
        written = f"{self._incoming}/{name}.{secrets.token_hex(8)}"
        try:
            _refuse_planted(target)
            # An IPv6 address is written bare: websockify splits at the last colon.
            _write(written, f"{token}: {host}:{port}\n".encode())
            try:
                move_in(written, target)
            except OSError:
                os.unlink(written)
                raise
        except OSError as error:
            raise TokenStoreError(f"Cannot create VNC proxy token. {error.strerror}") from error

    def _probe_rename(self) -> None:
        """Raise OSError with EXDEV if a file cannot be moved from one folder to the other.

        The device number is not enough: two bind mounts of one filesystem share it, and rename(2) refuses them
        still. It does so before it looks at the names, and "." can never be renamed, so this moves nothing.
        """
        try:
            os.rename(f"{self._incoming}/.", f"{self._path}/.")  # noqa: PTH104 (Path drops the dot)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f":token_folder_name: is {str(self._path)!r}, but a folder is expected in which, and in"
                f" {self._incoming.name!r} beside it on the same filesystem and mount, this user can write:"
                f" {error.strerror}{f' ({error.filename})' if error.filename else ''}"
            ) from error


def _write(path: str, content: bytes) -> None:
    """Write a new file, whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # No fsync: a token is worthless after a power failure, and the reactor thread must not wait for a disk.
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _refuse_planted(target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise OSError(errno.EINVAL, "The VM's entry in the token folder is not a regular file")
