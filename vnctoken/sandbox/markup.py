"""How oned writes XML: which values are plain and which CDATA, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping


def element(name: str, content: str) -> str:
    """Return an element with this content, which is XML."""
    return f"<{name}>{content}</{name}>"


def plain(values: Mapping[str, object]) -> str:
    """Return an element for every value, as a plain text."""
    return "".join(element(name, escape(str(value))) for name, value in values.items())


def cdata(text: str) -> str:
    """Return a text as CDATA."""
    # A section ends at the first ]]>, so one in the value is spread over two sections.
    return "<![CDATA[" + text.replace("]]>", "]]]]><![CDATA[>") + "]]>"


def attributes(values: Mapping[str, str | Mapping[str, str]]) -> str:
    """Return a template as oned writes one: sorted by name, nested once at most."""
    return "".join(
        element(name, cdata(value) if isinstance(value, str) else attributes(value))
        for name, value in sorted(values.items())
    )
