"""XML-RPC as xmlrpc-c speaks it, the library under oned: method calls in, arrays and faults out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn
from xml.parsers import expat
from xml.sax.saxutils import escape

TYPE_ERROR, PARSE_ERROR, NO_SUCH_METHOD_ERROR = -501, -503, -506
"""The fault codes that oned sends, as xmlrpc-c numbers them."""

_INT32 = range(-(2**31), 2**31)


class FaultError(Exception):
    """Raised if a call gets a ``<fault>`` for an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def body(self) -> bytes:
        """The answer, as the body of an HTTP message."""
        return _document(
            "<fault>\r\n<value><struct>\r\n"
            f"<member><name>faultCode</name>\r\n{i4(self.code)}</member>\r\n"
            f"<member><name>faultString</name>\r\n{string(str(self))}</member>\r\n"
            "</struct></value>\r\n</fault>\r\n"
        )


@dataclass(frozen=True)
class Answer:
    """What a method of oned answers, success or error. `object_id` is the one an error is about, or -1.

    `number` is the result of a success that is not a text.
    """

    success: bool
    text: str = ""
    code: int = 0
    object_id: int = -1
    number: int | None = None

    @cached_property
    def body(self) -> bytes:
        """The answer, as the body of an HTTP message: three elements, or five if it is an error."""
        result = string(self.text) if self.number is None else i4(self.number)
        values = [boolean(self.success), result, i4(self.code)]
        if not self.success:
            values += [i4(self.object_id), i8(-1)]
        return array(*values)


def boolean(value: bool) -> str:  # noqa: FBT001 - it encodes a boolean
    """Return a boolean value."""
    return f"<value><boolean>{int(value)}</boolean></value>"


def i4(value: int) -> str:
    """Return a four-byte integer value."""
    return f"<value><i4>{value}</i4></value>"


def i8(value: int) -> str:
    """Return an eight-byte integer value, which standard XML-RPC does not know."""
    return f"<value><i8>{value}</i8></value>"


def string(text: str) -> str:
    """Return a string value."""
    return f"<value><string>{escape(text, {chr(13): '&#x0d;'})}</string></value>"


def array(*values: str) -> bytes:
    """Return an answer that is an array of these values."""
    lines = "".join(f"{value}\r\n" for value in values)
    return response(f"<value><array><data>\r\n{lines}</data></array></value>")


def response(value: str) -> bytes:
    """Return an answer that is this value."""
    return _document(f"<params>\r\n<param>{value}</param>\r\n</params>\r\n")


def _document(content: str) -> bytes:
    return (f'<?xml version="1.0" encoding="UTF-8"?>\r\n<methodResponse>\r\n{content}</methodResponse>\r\n').encode()


@dataclass(frozen=True)
class Call:
    """A method call: the name, and for every argument its XML-RPC type and text."""

    method: str
    arguments: tuple[tuple[str, str], ...]

    def string(self, number: int) -> str:
        """Return an argument that must be a string; raise `FaultError` if it is missing or another type."""
        return self._argument(number, "string", "string")

    def integer(self, number: int) -> int:
        """Return an argument that must be an int; raise `FaultError` if it is missing or another type."""
        return int(self._argument(number, "int", "integer"))

    def boolean(self, number: int) -> bool:
        """Return an argument that must be a boolean; raise `FaultError` if it is missing or another type."""
        return self._argument(number, "boolean", "boolean") == "1"

    def _argument(self, number: int, wanted: str, as_oned_says: str) -> str:
        if number >= len(self.arguments):
            raise FaultError(TYPE_ERROR, "Not enough parameters")
        kind, text = self.arguments[number]
        if kind != wanted:
            raise FaultError(TYPE_ERROR, f"Parameter that is supposed to be {as_oned_says} is not")
        return text


class _Element:
    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[_Element] = []

    def only_child(self, name: str) -> _Element:
        if [child.name for child in self.children] != [name]:
            _refuse(f"<{self.name}> must hold one <{name}> and nothing else")
        return self.children[0]


def _refuse(reason: str) -> NoReturn:
    raise FaultError(PARSE_ERROR, f"Call XML not a proper XML-RPC call.  {reason}")


def _parse(body: bytes) -> _Element:
    parents = [_Element("")]

    def start(name: str, _attributes: object) -> None:
        element = _Element(name)
        parents[-1].children.append(element)
        parents.append(element)

    def end(_name: str) -> None:
        parents.pop()

    def text(data: str) -> None:
        parents[-1].text += data

    def doctype(*_declaration: object) -> None:
        _refuse("Call is not valid XML.  It has a document type declaration")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        problem = expat.ErrorString(error.code)
    except (LookupError, ValueError):
        # Python raises these for encodings that it does not know or that expat cannot use.
        problem = "unknown encoding"
    else:
        return parents[0].children[0]
    _refuse(
        f"Call is not valid XML.  Invalid XML \"content\".  Problem with token at '...': {problem}",
    )


def decode_call(body: bytes) -> Call:
    """Return the method call in a request's body; raise `FaultError` if it holds none."""
    root = _parse(body)
    if root.name != "methodCall":
        _refuse(f"The outermost element is <{root.name}>, not <methodCall>")
    names = [child.name for child in root.children]
    if names not in (["methodName"], ["methodName", "params"]):
        _refuse("<methodCall> must hold one <methodName>, and after it at most one <params>")
    parameters = root.children[1].children if len(names) > 1 else []
    return Call(root.children[0].text, tuple(_argument(parameter) for parameter in parameters))


def _argument(parameter: _Element) -> tuple[str, str]:
    if parameter.name != "param":
        _refuse(f"<params> must hold <param>s, not <{parameter.name}>")
    value = parameter.only_child("value")
    if not value.children:
        return "string", value.text
    if len(value.children) > 1:
        _refuse("<value> must hold one type at most")
    typed = value.children[0]
    kind = "int" if typed.name == "i4" else typed.name
    if kind == "int" and not (re.fullmatch("[+-]?[0-9]{1,10}", typed.text) and int(typed.text) in _INT32):
        _refuse(f"<{typed.name}> must be a whole number of four bytes")
    if kind == "boolean" and typed.text not in ("0", "1"):
        _refuse("<boolean> must be 0 or 1")
    return kind, typed.text
