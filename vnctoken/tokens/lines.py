"""What is in a token file: lines that websockify reads, and comments that it skips, in which we keep a token's life.

::

    # vnctoken {"sha256": "60ae...", "issued": 1795316218.5, "ttl": 600, "user": "alice"}
    0123456789abcdef0123456789abcdef: dummy-host-1:5900

A comment belongs to the token with that SHA-256. A token that only the resolver may find has no line of its own: its
comment holds the target as well. A line without a comment is somebody else's, such as Sunstone's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from vnctoken.tokens import Grant, LiveToken, digest

_MARK = "# vnctoken "
_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_PORT = re.compile("[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """A token in a file: `line` is what websockify reads of it, "" for nothing, and `text` all that is written."""

    live: LiveToken
    line: str
    ours: bool
    text: str = field(init=False, repr=False, compare=False)
    expires: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what is asked for again and again: a file is written anew for each of its tokens."""
        line = f"{self.line}\n" if self.line else ""
        object.__setattr__(self, "text", f"{_written_comment(self)}\n{line}")
        object.__setattr__(self, "expires", self.live.grant.expires)


def read_entries(content: bytes, vm_id: int, *, modified: float, ttl: int) -> list[Entry]:
    """Return the tokens in a VM's file, in its order.

    Lines that somebody else wrote count as issued at `modified`, in seconds of the epoch, for `ttl` seconds. One that
    leads to no port (a Unix socket's path, say) has port 0. What is neither a token nor a comment of ours is left out:
    it would break the connections of OpenNebula's own proxy.
    """
    # A carriage return ends a line for Python's readers, too.
    lines = [line.strip() for line in content.decode(errors="replace").replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line.isascii() and line.isprintable()]
    comments = {comment["sha256"]: comment for line in lines if (comment := _read_comment(line)) is not None}
    entries = []
    for line in lines:
        entry = _entry(line, comments, vm_id, modified, ttl)
        if entry is not None:
            entries.append(entry)
    # Of several lines with one token the readers take the last.
    counting = {entry.live.digest: entry for entry in sorted(entries, key=lambda entry: bool(entry.line))}
    return [entry for entry in entries if counting[entry.live.digest] is entry]


def write_entries(entries: list[Entry]) -> bytes:
    """Return the content of a file with these tokens."""
    return "".join(entry.text for entry in entries).encode()


def _entry(line: str, comments: dict[str, Any], vm_id: int, modified: float, ttl: int) -> Entry | None:
    if line.startswith("#"):
        comment = _read_comment(line)
        if comment is None or "host" not in comment:
            return None
        return Entry(_live(comment, vm_id, comment["host"], comment["port"]), "", ours=True)
    token, separator, target = line.partition(": ")
    # As both readers split a line: one that they take for something else must not be written again.
    if not separator or len(re.split(r":\s", line)) != len("ab"):
        return None
    target = target.strip()
    line = f"{token}: {target}"
    host, _, digits = target.rpartition(":")
    port = int(digits) if _PORT.fullmatch(digits) else 0
    comment = comments.get(digest(token))
    if comment is None:
        grant = Grant(vm_id, host, port, modified, ttl)
        return Entry(LiveToken(digest(token), grant), line, ours=False)
    return Entry(_live(comment, vm_id, host, port), line, ours=not comment.get("theirs", False))


def _live(comment: dict[str, Any], vm_id: int, host: str, port: int) -> LiveToken:
    grant = Grant(
        vm_id,
        host,
        port,
        comment["issued"],
        comment["ttl"],
        user=comment.get("user", ""),
        single_use=comment.get("single_use", False),
        client=comment.get("client", ""),
    )
    return LiveToken(comment["sha256"], grant, comment.get("used", 0))


_TYPES: dict[str, tuple[type, ...]] = {
    "sha256": (str,),
    "issued": (int, float),
    "ttl": (int,),
    "user": (str,),
    "single_use": (bool,),
    "client": (str,),
    "used": (int, float),
    "host": (str,),
    "port": (int,),
    "theirs": (bool,),
}


def _read_comment(line: str) -> dict[str, Any] | None:
    """Read a comment of ours; None if it is none, or not as we write it: then its token counts as somebody else's."""
    if not line.startswith(_MARK):
        return None
    try:
        comment = json.loads(line[len(_MARK) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(comment, dict) or not {"sha256", "issued", "ttl"} <= comment.keys():
        return None
    if any(type(value) not in _TYPES.get(name, ()) for name, value in comment.items()):
        return None
    if not _SHA256.fullmatch(comment["sha256"]) or ("host" in comment) != ("port" in comment):
        return None
    # JSON knows numbers that are none, and ones for which there is no time.
    in_range = 0 <= comment["issued"] < 2**40 and 0 <= comment["ttl"] < 2**40 and 0 <= comment.get("used", 0) < 2**40
    return comment if in_range else None


def _written_comment(entry: Entry) -> str:
    grant = entry.live.grant
    comment: dict[str, Any] = {"sha256": entry.live.digest, "issued": round(grant.issued, 3), "ttl": grant.ttl}
    optional = {
        "user": grant.user,
        "single_use": grant.single_use,
        "client": grant.client,
        "used": round(entry.live.used, 3),
        "theirs": not entry.ours,
    }
    if not entry.line:
        comment |= {"host": grant.host, "port": grant.port}
    return _MARK + json.dumps(comment | {name: value for name, value in optional.items() if value})
