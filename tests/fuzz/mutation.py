"""How inputs are changed: piece by piece, so that a document stays one more often than by chance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fuzz.target import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from fuzz.target import Target

# A tag, a word, white space, or any other byte.
_PIECE = re.compile(rb"<[^<>]{1,200}>|[A-Za-z0-9_]+|[ \t]+|.", re.DOTALL)
_NAME = re.compile(rb"<([A-Za-z0-9_.:-]+)[^<>]*(?<!/)>")

WORDS = (
    *(b"", b"0", b"-1", b"7", b"2147483647", b"2147483648", b"9" * 19, b"9" * 5000, b"1e400", b"NaN", b"true", b"null"),
    *(b"\x00", b"\t", b"\r", b"\n", b"\r\n", b" ", b"\x0b", b"\x1f", b"\x7f", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf"),
    *("é".encode(), "\x85".encode(), "\u2028".encode(), "\uffff".encode(), "\uff11".encode(), "\U0001f600".encode()),
    *(b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\\n", b"%00", b"%0d%0a", b"%ff", b"%", b"\\", b"'", b'"', b"`"),
    *(b"&#13;", b"&#0;", b"&#xd800;", b"&lt;", b"&amp;", b"&x;", b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?x y?>"),
    *(b"<!DOCTYPE x [<!ENTITY x 'y'>]>", b"<x>", b"</x>", b"<x/>", b"<x xmlns='urn:x'>", b"<x:y/>"),
    *(b":", b": ", b"::", b"#", b",", b";", b"=", b"==", b"&", b"?", b"/", b"//", b"..", b"-", b"_", b"@", b"|", b"+"),
    *(b"{", b"}", b"[", b"]", b"(", b")", b"[]", b"{}", b"!", b"*", b"~", b"<", b">", b"A" * 300, b"(null)"),
    *(b"127.0.0.1", b"::1", b"fe80::1%eth0", b"::ffff:192.0.2.7", b"[::1]:80", b"192.0.2.7:80"),
)
"""What breaks readers of all kinds."""

KINDS = ("insert", "replace", "remove", "repeat", "copy", "flip", "cut")


@dataclass(frozen=True, slots=True)
class Edit:
    """One change: `where` and `other` are pieces' numbers, counted round and round; `times` counts repetitions."""

    kind: str
    where: int
    other: int
    times: int
    word: bytes


def edited(data: bytes, edit: Edit) -> bytes:
    """Return data with a change."""
    pieces = _PIECE.findall(data) or [b""]
    begin, end = _span(pieces, edit.where % len(pieces))
    piece = pieces[begin:end]
    match edit.kind:
        case "insert":
            piece = [edit.word, *piece]
        case "replace":
            piece = [edit.word]
        case "remove":
            piece = []
        case "repeat":
            piece = piece * min(edit.times, MAX_BYTES // max(1, sum(map(len, piece))) + 1)
        case "copy":
            other = slice(*_span(pieces, edit.other % len(pieces)))
            piece = [*pieces[other], *piece]
        case "flip":
            first = piece[0] or b"\0"
            piece = [bytes([first[0] ^ 1 << edit.other % 8]), first[1:], *piece[1:]]
        case "cut":
            piece, end = [], len(pieces)
    return b"".join([*pieces[:begin], *piece, *pieces[end:]])[:MAX_BYTES]


def _span(pieces: Sequence[bytes], begin: int) -> tuple[int, int]:
    """Return where a piece begins and ends: a start tag goes with all up to its end tag."""
    if match := _NAME.fullmatch(pieces[begin]):
        closing = b"</" + match[1] + b">"
        for end in range(begin + 1, min(begin + 200, len(pieces))):
            if pieces[end] == closing:
                return begin, end + 1
    return begin, begin + 1


def vocabulary(target: Target) -> tuple[bytes, ...]:
    """Return the words for a target: what breaks all, its own, and those in what it begins with."""
    own = {word for seed in target.seeds for word in _PIECE.findall(seed) if len(word) > 1}
    return (*WORDS, *target.words, *sorted(own))


def changed(data: bytes, words: Sequence[bytes], random: Random) -> bytes:
    """Return data with some changes, as chance has it."""
    for _ in range(random.choice((1, 1, 2, 4))):
        # To repeat a piece makes inputs that take long: seldom.
        kind = random.choice(KINDS) if random.random() < 1 / 50 else random.choice(KINDS[:3] + KINDS[4:])
        times = random.choice((2, 3, 100, MAX_BYTES))
        data = edited(data, Edit(kind, random.randrange(5000), random.randrange(5000), times, random.choice(words)))
    return data
