"""The files of the audit log: how one is opened, and where the chain in one ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING

from vnctoken.auditlines import Head, read_line
from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES = 65_536
"""How much of the end of a file is read for its last line."""

# Readable by the group, as OpenNebula's logs are: it is oneadmin's.
_MODE = 0o640

_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


def opened(path: Path) -> int:
    """Open a file, or create it, and lock it. Raises ConfigError."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, flags, _MODE)
    except OSError as error:
        raise ConfigError(
            f"{path}: the audit log (:audit_log:) cannot be opened ({error.strerror}); a regular file, and no link, is"
            " expected, in a folder where the service's user can write"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{path}: the audit log (:audit_log:) has to be a regular file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        problem = "another process writes it" if isinstance(error, BlockingIOError) else error.strerror
        raise ConfigError(f"{path}: the audit log (:audit_log:) cannot be locked: {problem}") from None
    except ConfigError:
        os.close(fd)
        raise
    return fd


def end_of(fd: int) -> tuple[Head, int, bool] | None:
    """Return the head of a file, how many lines at its end are damaged, and whether the last one is unfinished.

    None if nothing at its end is a line of ours.
    """
    size = os.fstat(fd).st_size
    tail = os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
    lines = tail.split(b"\n")
    unfinished = lines[-1] != b""
    if not unfinished:
        lines.pop()
    if size > TAIL_BYTES:
        del lines[0]
    for damaged, line in enumerate(reversed(lines)):
        entry = read_line(line)
        if entry is not None:
            head = Head(entry.seq - 1).then(line)
            for each in lines[len(lines) - damaged :]:
                head = head.then_damaged(sha256(each).hexdigest())
            return head, damaged, unfinished
    return None


def end_of_rotated(path: Path) -> tuple[Head, int]:
    """Return the head of the newest file that a log was renamed to, and how many lines at its end are damaged.

    Compressed ones are passed over.
    """
    ends = [(Head(), 0)]
    with contextlib.suppress(OSError):
        for candidate in path.parent.iterdir():
            if candidate.name.startswith((f"{path.name}-", f"{path.name}.")) and candidate.suffix not in _COMPRESSED:
                end = _end_of_file(candidate)
                if end is not None:
                    ends.append(end[:2])
    return max(ends, key=lambda end: end[0].seq)


def _end_of_file(path: Path) -> tuple[Head, int, bool] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return end_of(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
