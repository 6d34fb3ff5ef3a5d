"""One line of the audit log: how it is written, and what is read of it again. docs/audit.md describes it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.decisions import Decision

Notice = Literal["opened", "resumed", "gap"]
"""What the log says of itself: a file begins; the service began and the file was there; lines could not be written."""

MAX_LINE_BYTES = 4096
"""How long a line is at most, its end included."""

# Characters that a text may have; the smaller number is for who has filled one with what takes 12 bytes each.
_TEXT_LENGTHS = (256, 32)

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the number of its last line, and that line's SHA-256.

    If the last line is damaged, it is the SHA-256 of two in hex: that of what is before the line, and the line's own.
    """

    seq: int = 0
    sha256: str = "0" * 64

    def __str__(self) -> str:
        return f"seq={self.seq} sha256={self.sha256}"

    def then(self, line: bytes) -> Head:
        """Return the head when a line has been added."""
        return Head(self.seq + 1, _sha256(line))

    def then_damaged(self, sha256: str) -> Head:
        """Return the head when a damaged line has been added, which itself does not tell of the one before."""
        return Head(self.seq + 1, _sha256(f"{self.sha256}{sha256}".encode()))


@dataclass(frozen=True, slots=True)
class Entry:
    """What of a line its place in the chain depends on."""

    time: str
    seq: int
    event: str
    prev: str
    damaged: int


def decision_line(decision: Decision, time: float, head: Head) -> bytes:
    """Return the line of a decision, without its end; `time` is in seconds since 1970."""
    return _line(
        {
            "event": decision.event,
            "request": decision.request,
            "method": decision.method,
            "user": decision.user,
            "uid": decision.uid,
            "door": decision.door,
            "client": decision.client,
            "vm": decision.vm_id,
            "host": decision.host,
            "port": decision.port,
            "token": decision.token,
            "code": decision.code,
            "reason": decision.reason,
        },
        time,
        head,
    )


def notice_line(notice: Notice, time: float, head: Head, *, missing: int, damaged: int) -> bytes:
    """Return a line of the log about itself, without its end.

    So many lines before it are missing, as they could not be written, and so many are there in part only.
    """
    return _line({"event": notice, "missing": missing or None, "damaged": damaged or None}, time, head)


def read_line(line: bytes) -> Entry | None:
    """Return what a line says, without its end; None if it is none of ours."""
    if len(line) >= MAX_LINE_BYTES:
        return None
    try:
        match json.loads(line.decode()):
            case {"time": str(time), "seq": int(seq), "event": str(event), "prev": str(prev), **rest} if (
                _TIME.fullmatch(time) and _SHA256.fullmatch(prev)
            ):
                damaged = rest.get("damaged", 0)
                return Entry(time, seq, event, prev, damaged if isinstance(damaged, int) else 0)
    except (ValueError, RecursionError):
        pass
    return None


def _line(fields: Mapping[str, str | int | None], time: float, head: Head) -> bytes:
    moment = datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="microseconds")
    line = b""
    for length in _TEXT_LENGTHS:
        known: dict[str, str | int] = {"time": f"{moment[:-6]}Z", "seq": head.seq + 1}
        for name, value in fields.items():
            if isinstance(value, str):
                if value:
                    known[name] = value if len(value) <= length else f"{value[: length - 1]}…"
            elif value is not None:
                known[name] = value
        known["prev"] = head.sha256
        line = _printable(_encode(known)).encode()
        if len(line) < MAX_LINE_BYTES:
            break
    return line


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _printable(text: str) -> str:
    """Escape what would do something to who reads the log in a terminal, such as U+202E and U+009B, or has no bytes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
