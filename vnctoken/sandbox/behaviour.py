"""How a server can be ugly to its clients, each way on request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from vnctoken.sandbox.calls import Answer, FaultError, array, boolean, i4, i8, response, string

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(Enum):
    """The ways to answer."""

    NORMAL = auto()
    """As oned does."""
    HANG = auto()
    """Accept the call and never answer."""
    RESET = auto()
    """Reset the connection."""
    CLOSE = auto()
    """Close without a byte."""
    GARBAGE = auto()
    """Bytes that are no HTTP."""
    HTML = auto()
    """200 with an HTML page, as from a captive proxy."""
    BAD_GATEWAY = auto()
    """502 with an HTML page, as from a proxy whose oned is down."""
    REDIRECT = auto()
    """302 to another server; a client that follows shows it the session."""
    TRUNCATED = auto()
    """A Content-length larger than what is sent, then close."""
    HALF = auto()
    """Half the message, then silence with the connection open."""
    DRIP = auto()
    """The message byte by byte, with `Behaviour.pause` between two."""
    HUGE = auto()
    """A success whose string is 32 MiB long."""
    FAULT = auto()
    """An XML-RPC fault."""
    UNKNOWN_CODE = auto()
    """An error with the code 0x8000, which OpenNebula does not have."""
    THREE_ELEMENTS = auto()
    """An error of three elements, as from an older oned."""
    BARE_STRING = auto()
    """A string where the array should be."""
    EMPTY = auto()
    """A success whose string is empty."""
    NOT_XML = auto()
    """A success whose string is no XML."""
    NOT_UTF8 = auto()
    """A success with bytes that are no UTF-8."""
    DTD = auto()
    """A success whose XML has a document type declaration."""
    BOMB = auto()
    """A ``methodResponse`` of 1 kB whose entities grow to 3 MB."""
    I8 = auto()
    """Success or error as usual, with its numbers as ``<i8>``."""


@dataclass(frozen=True)
class Behaviour:
    """How to answer, `delay` seconds after the call has come; `pause` seconds between two bytes of a DRIP."""

    kind: Kind = Kind.NORMAL
    delay: float = 0
    pause: float = 0.1


UGLY_GUESTS: Mapping[int, Behaviour] = {
    900: Behaviour(delay=2),
    901: Behaviour(Kind.HANG),
    902: Behaviour(Kind.RESET),
    903: Behaviour(Kind.CLOSE),
    904: Behaviour(Kind.GARBAGE),
    905: Behaviour(Kind.HTML),
    906: Behaviour(Kind.BAD_GATEWAY),
    907: Behaviour(Kind.REDIRECT),
    908: Behaviour(Kind.TRUNCATED),
    909: Behaviour(Kind.HALF),
    910: Behaviour(Kind.DRIP),
    911: Behaviour(Kind.HUGE),
    912: Behaviour(Kind.FAULT),
    913: Behaviour(Kind.UNKNOWN_CODE),
    914: Behaviour(Kind.THREE_ELEMENTS),
    915: Behaviour(Kind.BARE_STRING),
    916: Behaviour(Kind.EMPTY),
    917: Behaviour(Kind.NOT_XML),
    918: Behaviour(Kind.NOT_UTF8),
    919: Behaviour(Kind.DTD),
    920: Behaviour(Kind.BOMB),
    921: Behaviour(Kind.I8),
}
"""The VM ids of the demo cloud that are ugly to ask for with ``one.vm.info``."""

UNKNOWN_CODE = 0x8000
HUGE_LENGTH = 32 * 1024 * 1024
_ERROR = "[one.vm.info] The sandbox was asked for an error."
_PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>\n"
_DOCTYPE = '<!DOCTYPE VM [<!ENTITY host "dummy-host-1">]>'


def spoil_answer(kind: Kind, answer: Answer) -> bytes:
    """Return the HTTP body that an answer gets in this kind of behaviour; most kinds leave it alone."""
    match kind:
        case Kind.HUGE:
            return array(boolean(True), string("x" * HUGE_LENGTH), i4(0))
        case Kind.FAULT:
            return FaultError(-500, _ERROR).body
        case Kind.UNKNOWN_CODE:
            return Answer(success=False, text=_ERROR, code=UNKNOWN_CODE).body
        case Kind.THREE_ELEMENTS:
            return array(boolean(False), string(_ERROR), i4(0x2000))
        case Kind.BARE_STRING:
            return response(string(answer.text))
        case Kind.EMPTY:
            return Answer(success=True, text="").body
        case Kind.NOT_XML:
            return Answer(success=True, text="this is <no XML").body
        case Kind.NOT_UTF8:
            return answer.body.replace(b"<string>", b"<string>\xff\xfe")
        case Kind.DTD:
            return Answer(success=True, text=_DOCTYPE + answer.text).body
        case Kind.BOMB:
            return _bomb()
        case Kind.I8:
            values = [boolean(answer.success), string(answer.text), i8(answer.code)]
            return array(*values, *([] if answer.success else [i8(answer.object_id), i8(-1)]))
        case _:
            return answer.body


def _bomb() -> bytes:
    steps = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 7))
    doctype = f'<!DOCTYPE methodResponse [<!ENTITY e0 "lol">{steps}]>\r\n<methodResponse>'
    spoiled = array(boolean(True), "<value><string>&e6;</string></value>", i4(0))
    return spoiled.replace(b"<methodResponse>", doctype.encode(), 1)


def spoil_message(kind: Kind, message: bytes) -> bytes:
    """Return what is sent instead of a whole HTTP message in this kind of behaviour."""
    match kind:
        case Kind.GARBAGE:
            return bytes(range(256))
        case Kind.HTML:
            return _html("200 OK", _PAGE.format("Please log in"))
        case Kind.BAD_GATEWAY:
            return _html("502 Bad Gateway", _PAGE.format("502 Bad Gateway"))
        case Kind.REDIRECT:
            return _html("302 Found", _PAGE.format("302 Found"), "Location: http://127.0.0.1:9/RPC2\r\n")
        case Kind.TRUNCATED:
            return message[: -len(message) // 3]
        case Kind.HALF:
            return message[: len(message) // 2]
        case _:
            return message


def _html(status: str, page: str, more_headers: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n"
        f"{more_headers}Connection: close\r\n\r\n{page}"
    ).encode()
