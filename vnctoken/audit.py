"""The audit log: what was decided, a line of JSON each, in a chain of hashes.

A line is with the kernel before the call is answered, but not on the disk: a power failure can take the last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING

from twisted.logger import Logger

from vnctoken.auditlines import Head, decision_line, notice_line, read_line
from vnctoken.errors import AuditError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vnctoken.auditlines import Notice
    from vnctoken.decisions import Decision
    from vnctoken.measures import Measures

TAIL_BYTES = 65_536
"""How much of the end of a file is read for its last line."""

# Readable by the group, as OpenNebula's logs are: it is oneadmin's.
_MODE = 0o640

_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


class AuditLog:
    """Writes decisions down (an Audit), in a file that it alone appends to. `now` is in seconds since 1970.

    If a line cannot be written, `required` says whether that is an error. It is missing then, and the first line that
    can be written again says how many are.
    """

    _log = Logger()

    def __init__(self, path: Path, now: Callable[[], float], *, required: bool, measures: Measures) -> None:
        self._path = path
        self._now = now
        self._required = required
        self._measures = measures
        self._fd = -1
        self._head = Head()
        # Whether the file ends in the middle of a line that could not be cut off again.
        self._unfinished = False
        # What has to be written before the next decision, and says so.
        self._notice: Notice | None = None
        self._missing = 0
        self._damaged = 0
        self._trouble = ""

    def open(self) -> None:
        """Go on where the file ends, or the newest one that was rotated if there is none, or it is empty.

        Raises ConfigError if the file cannot be opened, or is no audit log, or another process writes it.
        """
        fd = _opened(self._path)
        try:
            if os.fstat(fd).st_size:
                self._notice, end = "resumed", _end(fd)
                if end is None:
                    raise ConfigError(
                        f"{self._path}: this is no audit log, or its end is damaged too much to go on (:audit_log:);"
                        " move it away, and a new one is begun"
                    )
                self._head, self._damaged, self._unfinished = end
            else:
                self._notice = "opened"
                self._head, self._damaged = _end_of_rotated(self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._settle_if_possible()
        self._log.info("the audit log begins where it ended: {path}, head {head}", path=self._path, head=self._head)

    def record(self, decision: Decision) -> None:
        """Write a decision down. Raises AuditError if it cannot be and must."""
        try:
            self._settle()
            self._append(decision_line(decision, self._now(), self._head))
        except OSError as error:
            self._missing += 1
            self._measures.audit_failed()
            self._begin_trouble(error)
            if self._required:
                raise _refusal() from None

    async def check(self) -> None:
        """Raise AuditError if decisions cannot be written, or the file is another one than is at its path."""
        try:
            self._settle()
        except OSError:
            raise _refusal() from None
        if not self._is_in_place():
            raise AuditError("The audit log has been moved and not begun anew: the service has to be reloaded")

    def reopen(self) -> None:
        """Go on in a new file if the old one has been renamed; if that cannot be, in the old one, with a warning."""
        if self._fd < 0 or self._is_in_place():
            return
        try:
            fd = _opened(self._path)
            if os.fstat(fd).st_size:
                os.close(fd)
                raise ConfigError(f"{self._path}: here is another file now, which is not empty (:audit_log:)")
        except ConfigError as error:
            self._log.warn("the audit log goes on in the file that was moved: {reason}", reason=str(error))
            return
        os.close(self._fd)
        self._fd, self._unfinished, self._notice = fd, False, "opened"
        self._log.info("the audit log goes on in a new file: {path}, head {head}", path=self._path, head=self._head)
        self._settle_if_possible()

    def close(self) -> None:
        """Write no more."""
        os.close(self._fd)
        self._fd = -1
        self._log.info("the audit log ends: {path}, head {head}", path=self._path, head=self._head)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
        except OSError:
            return False

    def _settle_if_possible(self) -> None:
        try:
            self._settle()
        except OSError as error:
            self._begin_trouble(error)

    def _settle(self) -> None:
        """Write the notice that is due, if any."""
        if self._notice is None:
            return
        self._append(notice_line(self._notice, self._now(), self._head, missing=self._missing, damaged=self._damaged))
        if self._trouble:
            self._log.info("the audit log can be written again; lines missing in it: {missing}", missing=self._missing)
        self._notice, self._missing, self._damaged, self._trouble = None, 0, 0, ""

    def _begin_trouble(self, error: OSError) -> None:
        self._notice = self._notice or "gap"
        if not self._trouble:
            self._trouble = error.strerror or type(error).__name__
            self._log.warn(
                "the audit log cannot be written ({reason}): until it can be, {consequence}",
                reason=self._trouble,
                consequence="calls are refused (:audit_required:)" if self._required else "decisions are missing in it",
            )

    def _append(self, line: bytes) -> None:
        data = b"\n" * self._unfinished + line + b"\n"
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            if written:
                self._take_back(data[:written], line)
            raise
        self._unfinished = False
        self._head = self._head.then(line)

    def _take_back(self, piece: bytes, line: bytes) -> None:
        """Cut off what was written of a line, or else count it as one of the chain."""
        try:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(piece))
        except OSError:
            # Such as EPERM of a file with the attribute "append only" (chattr +a).
            torn = piece[self._unfinished :]
            self._unfinished = bool(torn)
            if torn:
                whole = torn == line
                self._head = self._head.then(torn) if whole else self._head.then_damaged(sha256(torn).hexdigest())
                self._damaged += not whole


def _refusal() -> AuditError:
    return AuditError(
        "The audit log cannot be written, and without it nothing is decided here (:audit_required:);"
        " whoever runs this service has to look after it"
    )


def _opened(path: Path) -> int:
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


def _end(fd: int) -> tuple[Head, int, bool] | None:
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


def _end_of_rotated(path: Path) -> tuple[Head, int]:
    """Return the head of the newest file that a log was renamed to, and how many lines at its end are damaged.

    Compressed ones are passed over.
    """
    ends = [(Head(), 0)]
    with contextlib.suppress(OSError):
        for candidate in path.parent.iterdir():
            if candidate.name.startswith((f"{path.name}-", f"{path.name}.")) and candidate.suffix not in _COMPRESSED:
                end = _end_of(candidate)
                if end is not None:
                    ends.append(end[:2])
    return max(ends, key=lambda end: end[0].seq)


def _end_of(path: Path) -> tuple[Head, int, bool] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _end(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
