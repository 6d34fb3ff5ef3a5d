"""Verify audit logs: whether every line is there, as it was written, and where it was written."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vnctoken.auditlines import MAX_LINE_BYTES, Head, read_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedReader
    from pathlib import Path

    from vnctoken.auditlines import Entry

SHOWN = 20
"""How many problems are told one by one."""

_GZIP = b"\x1f\x8b"


def verify_files(paths: Sequence[Path]) -> tuple[bool, list[str]]:
    """Read files that one audit log was rotated to, oldest first, compressed by gzip or not.

    Returns whether no line was removed, changed, repeated or moved, and lines for a person: what is wrong and where,
    and which lines there are. What was cut off at the very end cannot be seen: the head that is told has to be compared
    with the one in the service's log.
    """
    chain = _Chain()
    for path in paths:
        _read(path, chain)
    return chain.report(len(paths))


def _read(path: Path, chain: _Chain) -> None:
    try:
        with _reading(path) as stream:
            for number, line in enumerate(_lines(stream), 1):
                chain.take(f"{path}, line {number}", line)
    except (OSError, EOFError, zlib.error) as error:
        chain.problem(f"{path}: cannot be read to its end ({getattr(error, 'strerror', None) or error})")


class _Line(NamedTuple):
    sha256: str
    entry: Entry | None
    ended: bool


class _Chain:
    """Compares each line with the one before."""

    def __init__(self) -> None:
        self._problems = 0
        self._texts: list[str] = []
        self._notes: list[str] = []
        self._count = 0
        self._head: Head | None = None
        self._place = ""
        self._times: list[str] = []
        # Lines that are none of ours, since the last one that is: the places of the first and the last.
        self._damaged = 0
        self._damaged_from = ""
        self._unfinished = False

    def problem(self, text: str) -> None:
        """Take something that is wrong."""
        self._problems += 1
        if self._problems <= SHOWN:
            self._texts.append(text)

    def take(self, place: str, line: _Line) -> None:
        """Take the next line."""
        self._count += 1
        entry = line.entry
        if entry is None:
            self._damaged += 1
            self._damaged_from = self._damaged_from or place
            self._unfinished = not line.ended
            self._head = (self._head or Head()).then_damaged(line.sha256)
        else:
            self._compare(place, entry)
            self._head = Head(entry.seq, line.sha256)
            self._times[1:] = [entry.time]
            self._damaged, self._damaged_from = 0, ""
        self._place = place

    def report(self, files: int) -> tuple[bool, list[str]]:
        """Return whether all is well, and what there is to say."""
        if self._damaged == 1 and self._unfinished:
            self._notes.append(f"{self._place}: torn: its end is not there (yet)")
        elif self._damaged:
            self._tell_of_damage()
        if not self._times:
            self.problem("there is no line of an audit log")
        if self._problems > SHOWN:
            self._texts.append(f"and {self._problems - SHOWN} more problems")
        summary = f"{self._count} lines in {files} file{'s' if files != 1 else ''}"
        if self._times:
            summary += f", from {self._times[0]} to {self._times[-1]}, head {self._head}"
        return not self._problems, [*self._texts, *self._notes, summary]

    def _tell_of_damage(self) -> None:
        others = "" if self._damaged == 1 else f" to {self._place}"
        self.problem(f"{self._damaged_from}{others}: changed: this is no line of an audit log")

    def _compare(self, place: str, entry: Entry) -> None:
        if self._head is None:
            self._begin(place, entry)
            return
        lost = entry.seq - self._head.seq - 1
        follows = lost == 0 and entry.prev == self._head.sha256
        if self._damaged and follows and entry.damaged == self._damaged:
            self._notes.append(
                f"{self._damaged_from}: torn, and known to be: {place} was written after it (lines: {self._damaged})"
            )
            return
        if self._damaged:
            self._tell_of_damage()
        if entry.seq == 1 and entry.prev == Head().sha256:
            self.problem(
                f"{place}: a new chain begins here, which does not tell what was between it and {self._place}; or are"
                " the files in order, oldest first?"
            )
        elif lost > 0:
            first = f"seq={entry.seq - lost} to " if lost > 1 else ""
            self.problem(f"{place}: lines are missing before it: {first}seq={entry.seq - 1}")
        elif lost < 0:
            self.problem(
                f"{place}: repeated or out of order: seq={entry.seq} after seq={self._head.seq}; or are the files in"
                " order, oldest first?"
            )
        elif not follows and not self._damaged:
            self.problem(f"{self._place}: changed: its SHA-256 is not the one that {place} has of it")

    def _begin(self, place: str, entry: Entry) -> None:
        if entry.event != "opened":
            self.problem(f"{place}: lines are missing before it: a file begins with the event 'opened'")
        elif entry.seq > 1:
            self._notes.append(f"{place}: goes on from an older file, which is not among these (prev={entry.prev})")


@contextmanager
def _reading(path: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    with path.open("rb") as stream:
        if stream.peek(len(_GZIP))[: len(_GZIP)] == _GZIP:
            with gzip.open(stream) as text:
                yield text
        else:
            yield stream


def _lines(stream: BufferedReader | gzip.GzipFile) -> Iterator[_Line]:
    """Read lines, however long, in pieces of bounded length."""
    while piece := stream.readline(MAX_LINE_BYTES):
        text = piece.removesuffix(b"\n")
        digest = hashlib.sha256(text)
        entry = read_line(text) if len(text) < len(piece) or len(piece) < MAX_LINE_BYTES else None
        while text == piece and len(piece) == MAX_LINE_BYTES:
            piece = stream.readline(MAX_LINE_BYTES)
            text = piece.removesuffix(b"\n")
            digest.update(text)
        yield _Line(digest.hexdigest(), entry, ended=text != piece)
        if text == piece:
            # What the service adds at this moment is the rest of this line, and no line.
            break
