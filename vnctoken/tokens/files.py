"""The files of the token folder that websockify reads, one per VM.

Every websocket connection reads every file there, and OpenNebula's copy of websockify breaks on anything that is
no complete token file, for everybody. So a file is written in a folder beside it and moved in whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vnctoken.errors import ConfigError
from vnctoken.tokens.moving import move_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


_NAME = re.compile("one-(0|[1-9][0-9]{0,9})", re.ASCII)
# A line has some 60 bytes, a comment some 150; nobody has thousands of viewers on one VM.
MAX_FILE_BYTES = 2**20
# A full disk may still take an empty file.
_PROBE = b"#" * 200


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes with a file: its number, its size, and when it was written, in nanoseconds of the epoch."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp in what stat(2) says."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def modified(self) -> float:
        """When the file was written, in seconds of the epoch."""
        return self.modified_ns / 1e9


class TokenFiles:
    """The files. Everything but `check` and `forget_half_written` raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Beside the folder, as its very listing is the readers'; on the same filesystem, for rename(2).
        self._incoming = path.with_name(path.name + ".new")

    def check(self) -> list[str]:
        """Make the folders if they are missing, and check that files can be moved in.

        Returns warnings. Raises ConfigError if files cannot be written.
        """
        with self._explained():
            for folder in (self._path, self._incoming):
                folder.mkdir(mode=0o700, exist_ok=True)
            self.probe()
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & stat.S_IRWXO:
            warning = (
                f":token_folder_name: {self._path} has mode {mode:04o}: other users can look into it;"
                f" expected 0700, as 'chmod 700 {self._path}' makes it"
            )
            return [warning]
        return []

    def probe(self) -> None:
        """See whether a file could be written and moved in, without a change to what readers see."""
        probe = f"{self._incoming}/probe.{secrets.token_hex(8)}"
        _write(probe, _PROBE)
        os.unlink(probe)
        os.stat(f"{self._path}/.")
        if not os.access(self._path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
        self._probe_rename()

    def forget_half_written(self) -> None:
        """Remove what a killed service left beside the folder. Raises ConfigError if it cannot be removed."""
        with self._explained():
            for leftover in self._incoming.iterdir():
                leftover.unlink()

    def stamps(self) -> dict[int, Stamp]:
        """Return the VMs that have a file, and its stamp."""
        found = {}
        with os.scandir(self._path) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                with contextlib.suppress(FileNotFoundError):
                    if name and stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode):
                        found[int(name[1])] = Stamp.of(status)
        return found

    def stamp(self, vm_id: int) -> Stamp | None:
        """Return the stamp of a VM's file; None if there is none."""
        try:
            return Stamp.of(os.lstat(self._target(vm_id)))
        except FileNotFoundError:
            return None

    def read(self, vm_id: int) -> tuple[bytes, Stamp] | None:
        """Return the content of a VM's file, and its stamp; None if there is none."""
        try:
            # Not blocking: somebody may have put a FIFO there.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._target(vm_id), flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _not_regular() if error.errno in (errno.ELOOP, errno.ENXIO) else error from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular()
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, f"The VM's token file has more than {MAX_FILE_BYTES} bytes")
            return os.read(descriptor, MAX_FILE_BYTES), Stamp.of(status)
        finally:
            os.close(descriptor)

    def replace(self, vm_id: int, content: bytes) -> Stamp:
        """Give a VM's file this content, in one step; if that is not possible, it keeps what it had."""
        target = self._target(vm_id)
        written = f"{self._incoming}/one-{vm_id}.{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(target).st_mode):
                raise _not_regular()
        _write(written, content)
        try:
            stamp = Stamp.of(os.lstat(written))
            move_in(written, target)
        except OSError:
            os.unlink(written)
            raise
        return stamp

    def remove(self, vm_ids: Collection[int]) -> None:
        """Remove the files of some VMs. Each breaks the lookups that OpenNebula's own proxy has under way."""
        for vm_id in vm_ids:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._target(vm_id))

    def _target(self, vm_id: int) -> str:
        return f"{self._path}/one-{vm_id:d}"

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


def _not_regular() -> OSError:
    return OSError(errno.EINVAL, "The VM's entry in the token folder is not a regular file")
