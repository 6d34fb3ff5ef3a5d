"""Kinds of values that several configuration keys have: a parser of each.

A parser returns the value as the service uses it, or raises ValueError with what is expected instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vnctoken.addresses import is_http_url, read_address

if TYPE_CHECKING:
    from collections.abc import Callable

# What fits into sockaddr_un.
_SOCKET_PATH_BYTES = 107


def shown(value: Any) -> str:
    """Quote a value for a message, without the password that an address may begin with."""
    try:
        # It looks from where a word begins only, or a long one would take it a time that is the square of its length.
        return re.sub(r"(?<![^\s'\"])[^\s'\"]*@", "...@", repr(value))
    except ValueError:
        return "a number of thousands of digits"


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as the one item of one."""
    return value if isinstance(value, list) else [value]


def number_from(value: Any) -> Any:
    """Return a number that was quoted as the number it is; longer ones fit no key."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value, re.ASCII) else value


def socket_path(value: str) -> Path | None:
    """Return the path of a Unix socket that is written as unix:/PATH, None if this is none."""
    path = Path(value.removeprefix("unix:"))
    if value.startswith("unix:/") and value.isprintable() and path.name:
        return path if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES else None
    return None


def host_and_port(value: Any, expected: str) -> tuple[str, int]:
    """Read HOST:PORT, to connect to."""
    try:
        host, port = read_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(expected) from None
    if port == 0:
        raise ValueError(expected)
    return host, port


def yes_or_no(value: Any) -> bool:
    """Read what YAML makes a boolean of."""
    if isinstance(value, bool):
        return value
    raise ValueError("yes or no")


def optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a parser that takes nothing as well."""
    return lambda value: None if value is None else parse(value)


def one_of(*names: str) -> Callable[[Any], str]:
    """Return a parser of words, which may be written as Ruby symbols."""

    def parse(value: Any) -> str:
        if isinstance(value, str) and value.strip(":") in names:
            return value.strip(":")
        raise ValueError(f"{', '.join(names[:-1])} or {names[-1]}")

    return parse


def integer(low: int, high: int) -> Callable[[Any], int]:
    """Return a parser of whole numbers between two bounds, both allowed."""

    def parse(value: Any) -> int:
        number = number_from(value)
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def integer_or_none(low: int, high: int) -> Callable[[Any], int | None]:
    """Return a parser of whole numbers between two bounds, and of the word none."""
    parse = integer(low, high)

    def parse_or_none(value: Any) -> int | None:
        if value == "none":
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"none, or {error}") from None

    return parse_or_none


def seconds(expected: str, allowed: Callable[[float], bool]) -> Callable[[Any], float]:
    """Return a parser of numbers of seconds."""

    def parse(value: Any) -> float:
        number = number_from(value)
        if isinstance(number, int | float) and not isinstance(number, bool) and allowed(number):
            return number
        raise ValueError(expected)

    return parse


def text(expected: str) -> Callable[[Any], str]:
    """Return a parser of texts without spaces."""

    def parse(value: Any) -> str:
        if isinstance(value, str) and value and value.isprintable() and " " not in value:
            return value
        raise ValueError(expected)

    return parse


def path(what: str) -> Callable[[Any], str]:
    """Return a parser of absolute paths."""

    def parse(value: Any) -> str:
        written = text(what)(value)
        if not written.startswith("/"):
            raise ValueError(what)
        return written

    return parse


def name(what: str) -> Callable[[Any], str]:
    """Return a parser of names that other programs have for something."""

    def parse(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch("[A-Za-z0-9_.-]{1,64}", value, re.ASCII):
            return value
        raise ValueError(f"{what}, 1 to 64 letters, digits and '_.-',")

    return parse


def url(example: str) -> Callable[[Any], str]:
    """Return a parser of http and https URLs."""
    expected = (
        f"a URL such as {example}, http or https, without user and query, its host an address or a name of letters,"
        " digits and hyphens,"
    )

    def parse(value: Any) -> str:
        written = text(expected)(value)
        if not is_http_url(written):
            raise ValueError(expected)
        return written

    return parse
