"""The audit log: what was decided, a line of JSON each, in a chain of hashes.

A line is with the kernel before the call is answered, but not on the disk: a power failure can take the last seconds.
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

from twisted.logger import Logger

from vnctoken.auditfiles import end_of, end_of_rotated, opened
from vnctoken.auditlines import Head, decision_line, notice_line
from vnctoken.errors import AuditError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vnctoken.auditlines import Notice
    from vnctoken.decisions import Decision
    from vnctoken.measures import Measures


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
        fd = opened(self._path)
        try:
            if os.fstat(fd).st_size:
                self._notice, end = "resumed", end_of(fd)
                if end is None:
                    raise ConfigError(
                        f"{self._path}: this is no audit log, or its end is damaged too much to go on (:audit_log:);"
                        " move it away, and a new one is begun"
                    )
                self._head, self._damaged, self._unfinished = end
            else:
                self._notice = "opened"
                self._head, self._damaged = end_of_rotated(self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._settle_if_possible()
        self._log.info("the audit log begins where it ended: {path}, head {head}", path=self._path, head=self._head)

    def record(self, decision: Decision) -> None:
        """Write a decision down. Raises AuditError if it cannot be and must."""
        try:
            if not os.fstat(self._fd).st_nlink and not self._is_in_place():
                # What is written to a file that was removed is gone.
                self._go_on_in_a_new_file()
            self._settle()
            self._append(decision_line(decision, self._now(), self._head))
        except (OSError, ConfigError) as error:
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
            self._go_on_in_a_new_file()
        except ConfigError as error:
            self._log.warn("the audit log goes on in the file that was moved: {reason}", reason=str(error))
            return
        self._settle_if_possible()

    def close(self) -> None:
        """Write no more."""
        self._settle_if_possible()
        os.close(self._fd)
        self._fd = -1
        if self._missing:
            self._log.warn("lines missing at the end of the audit log: {missing}", missing=self._missing)
        self._log.info("the audit log ends: {path}, head {head}", path=self._path, head=self._head)

    def _go_on_in_a_new_file(self) -> None:
        removed = not os.fstat(self._fd).st_nlink
        fd = opened(self._path)
        if os.fstat(fd).st_size:
            os.close(fd)
            raise ConfigError(f"{self._path}: here is another file now, which is not empty (:audit_log:)")
        os.close(self._fd)
        self._fd, self._unfinished, self._notice = fd, False, "opened"
        if removed:
            self._log.warn("the file of the audit log was removed: {path}", path=self._path)
        self._log.info("the audit log goes on in a new file: {path}, head {head}", path=self._path, head=self._head)

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

    def _begin_trouble(self, error: OSError | ConfigError) -> None:
        self._notice = self._notice or "gap"
        if not self._trouble:
            self._trouble = getattr(error, "strerror", None) or str(error) or type(error).__name__
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
