"""Consoles and live tokens on paper: tables as OpenNebula's commands print them, JSON, XML and CSV."""

from __future__ import annotations

import csv
import io
import json
import time
import unicodedata
from typing import TYPE_CHECKING, Any

from lxml import etree

from vnctoken.safexml import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vnctoken.client.calls import Console, LiveToken

    Row = tuple[int, str, LiveToken]
    """A live token, and the id and the name ("" if it is not known) of its VM."""

_WIDTH = 80


def console_table(console: Console, *, styled: bool) -> str:
    """Return a console as lines "KEY : value" below a header, which is bold and underlined if it may be `styled`."""
    values = {
        "ID": str(console.vm_id),
        "HOST": console.host,
        "TYPE": console.type,
        "PORT": str(console.port),
        "LISTEN": console.listen,
        "PASSWORD": console.password,
        "WSS": "YES" if console.wss else "NO",
        "TOKEN": console.token,
        "TTL": f"{console.ttl} s" if console.ttl else "no end",
        "URL": console.url or "-",
    }
    header = _header(f"VIRTUAL MACHINE {console.vm_id} CONSOLE".ljust(_WIDTH), styled=styled)
    return "\n".join([header, *(f"{key:<20}: {printable(value)}".rstrip() for key, value in values.items())])


def console_object(console: Console) -> dict[str, Any]:
    """Return a console for JSON, under the names that the protocol documents."""
    named = {
        "VmId": console.vm_id,
        "Host": console.host,
        "Type": console.type,
        "Port": console.port,
        "Listen": console.listen,
        "Password": console.password,
        "Wss": console.wss,
        "Token": console.token,
        "Ttl": console.ttl,
    }
    return named if console.url is None else {**named, "Url": console.url}


def token_object(row: Row) -> dict[str, Any]:
    """Return a live token for JSON and XML, under the names that the protocol documents, with its VM."""
    vm_id, name, live = row
    return {
        "vm": vm_id,
        "name": name,
        "fingerprint": live.fingerprint,
        "user": live.user,
        "issued": live.issued,
        "expires": live.expires,
        "used": live.used,
        "single_use": live.single_use,
        "client": live.client,
    }


COLUMNS: Mapping[str, tuple[int, Callable[[Row], str]]] = {
    "VM": (6, lambda row: str(row[0])),
    "NAME": (-20, lambda row: row[1] or "-"),
    "TOKEN": (-8, lambda row: row[2].fingerprint),
    "USER": (-15, lambda row: row[2].user or "-"),
    "ISSUED": (-14, lambda row: _moment(row[2].issued, "-")),
    "EXPIRES": (-14, lambda row: _moment(row[2].expires, "never")),
    "USED": (-14, lambda row: _moment(row[2].used, "-")),
    "ONCE": (-4, lambda row: "YES" if row[2].single_use else "NO"),
    "CLIENT": (-15, lambda row: row[2].client or "any"),
}
"""The columns of a list of tokens: the least width, negative for texts, which begin at the left; and what is in it."""

DEFAULT_COLUMNS = ("VM", "NAME", "TOKEN", "USER", "ISSUED", "EXPIRES", "USED")


def token_table(rows: Iterable[Row], columns: Sequence[str], *, styled: bool) -> str:
    """Return live tokens as a table; a cell that is too long widens its column."""
    cells = [[printable(COLUMNS[column][1](row)) for column in columns] for row in rows]
    widths = [
        max([abs(COLUMNS[column][0]), *(_span(line[number]) for line in [columns, *cells])])
        for number, column in enumerate(columns)
    ]

    def line(texts: Sequence[str]) -> str:
        return " ".join(
            _space(text, width) + text if COLUMNS[column][0] > 0 else text + _space(text, width)
            for column, text, width in zip(columns, texts, widths, strict=True)
        )

    return "\n".join([_header(line(columns), styled=styled), *(line(texts).rstrip() for texts in cells)])


def token_csv(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return the same as comma-separated values."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([printable(COLUMNS[column][1](row)) for column in columns] for row in rows)
    return written.getvalue().rstrip("\n")


def as_json(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, indent=2)


def console_xml(documents: Sequence[str], *, pooled: bool) -> str:
    """Return VM elements, which `one.vm.vnc` answers, as a document: the only one as it is, or a pool of them.

    Raises DocumentError.
    """
    elements = [parse(document.encode()) for document in documents]
    if not pooled:
        return _as_xml(elements[0])
    pool = etree.Element("VM_POOL")
    pool.extend(elements)
    return _as_xml(pool)


def token_xml(rows: Iterable[Row]) -> str:
    """Return live tokens as a pool of XML elements."""
    pool = etree.Element("VNCTOKEN_POOL")
    for row in rows:
        element = etree.SubElement(pool, "VNCTOKEN")
        for name, value in token_object(row).items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            etree.SubElement(element, "VMID" if name == "vm" else name.upper()).text = text
    return _as_xml(pool)


def printable(text: str) -> str:
    """Return a text for a terminal: whoever names a VM must not steer the terminals of those who list it."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _as_xml(element: etree._Element) -> str:
    return etree.tostring(element, encoding="us-ascii", pretty_print=True).decode().rstrip("\n")


def _header(text: str, *, styled: bool) -> str:
    return f"\033[1m\033[4m{text}\033[0m" if styled else text.rstrip()


def _span(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.category(character) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _space(text: str, width: int) -> str:
    return " " * (width - _span(text))


def _moment(second: int, none: str) -> str:
    """Return a time of the epoch in local time, as onevm show writes it."""
    try:
        return time.strftime("%m/%d %H:%M:%S", time.localtime(second)) if second else none
    except (OSError, OverflowError):
        return "?"  # in no year that there is
