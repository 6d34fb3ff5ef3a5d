"""What of a user's account matters for letting him in, read from oned's XML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vnctoken.errors import OnedError
from vnctoken.safexml import DocumentError, parse

if TYPE_CHECKING:
    from lxml import etree

_MAX_ID_DIGITS = 10


@dataclass(frozen=True, slots=True)
class User:
    """An account as oned describes it. Texts are as stored, "" where oned has none.

    `password` is what the account's auth driver compares with: for `core` the hexadecimal SHA-256 of the password, for
    `x509` the DNs of certificates, parted by "|". `token_password` is the key of the context tokens of VMs that the
    user has created. `group` is the name of the primary group, `groups` has the ids of all.
    """

    id: int
    name: str
    driver: str
    enabled: bool
    group: str
    groups: frozenset[int]
    password: str = field(repr=False)
    token_password: str = field(repr=False)

    @classmethod
    def from_xml(cls, document: str) -> User:
        """Read the XML that `one.user.info` answers. Raises OnedError if this is no user."""
        return cls.from_element(_root(document, "USER"))

    @classmethod
    def from_element(cls, element: etree._Element) -> User:
        """Read a USER element, as `from_xml` does."""
        texts = {str(child.tag): child.text or "" for child in element}
        groups = next(element.iterchildren("GROUPS"), None)
        template = next(element.iterchildren("TEMPLATE"), None)
        name = texts.get("NAME", "")
        if not name:
            raise OnedError("oned answered with a user without a NAME")
        primary = _number(texts.get("GID", ""), "GID")
        others = () if groups is None else groups.iterchildren("ID")
        return cls(
            id=_number(texts.get("ID", ""), "ID"),
            name=name,
            driver=texts.get("AUTH_DRIVER", ""),
            enabled=texts.get("ENABLED", "").strip() == "1",
            group=texts.get("GNAME", ""),
            groups=frozenset({primary, *(_number(other.text or "", "GROUPS/ID") for other in others)}),
            password=texts.get("PASSWORD", ""),
            token_password="" if template is None else template.findtext("TOKEN_PASSWORD") or "",
        )


def users(document: str) -> list[User]:
    """Read the XML that `one.userpool.info` answers. Raises OnedError if this is no pool of users."""
    return [User.from_element(element) for element in _root(document, "USER_POOL").iterchildren("USER")]


def group_names(document: str) -> dict[int, str]:
    """Read the XML that `one.grouppool.info` answers: the names of groups by id.

    Raises OnedError if this is no pool of groups.
    """
    groups = _root(document, "GROUP_POOL").iterchildren("GROUP")
    return {_number(group.findtext("ID") or "", "ID"): group.findtext("NAME") or "" for group in groups}


def _root(document: str, tag: str) -> etree._Element:
    try:
        root = parse(document.encode())
    except DocumentError:
        raise OnedError(f"oned answered with a {tag} that is not XML") from None
    if root.tag != tag:
        raise OnedError(f"oned answered with something that is no {tag}")
    return root


def _number(text: str, name: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS):
        raise OnedError(f"oned answered with an account without a {name}")
    return int(text)
