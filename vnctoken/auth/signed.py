"""A signed request, as Amazon's tools make them: what versions 2 and 4 of their signatures have in common."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

from vnctoken.auth import CredentialError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.auth import HttpRequest

WINDOW_SECONDS = 900
"""How far a signature's date may be from ours, before and after."""

CONTENT_SHA256 = "X-Amz-Content-SHA256"
"""The header, or parameter, with the hexadecimal SHA-256 of the body."""

MAX_QUERY_BYTES = 4096
MAX_PARAMETERS = 100

_DEFAULT_PORT = re.compile(":(80|443)$")


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a request says about its signature. `sign` makes the one that is right for a secret.

    All times are seconds of the epoch: when it was `made`, or the earliest that may have been, and when it counts.
    """

    access_key: str
    signature: bytes = field(repr=False)
    sign: Callable[[str], bytes] = field(repr=False)
    made: int
    not_before: int
    not_after: int

    def is_by(self, secret: str) -> bool:
        """Whether it was signed with this secret."""
        return hmac.compare_digest(self.sign(secret), self.signature)


def path_of(request: HttpRequest) -> bytes:
    """Return the path as it was sent."""
    return request.uri.partition(b"?")[0] or b"/"


def parameters(request: HttpRequest) -> list[tuple[str, str]]:
    """Return names and values of the query, decoded, in their order. Raises CredentialError if it cannot be read."""
    query = request.uri.partition(b"?")[2]
    if len(query) > MAX_QUERY_BYTES:
        raise CredentialError(f"the query is longer than {MAX_QUERY_BYTES} bytes")
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise CredentialError(
            f"the query has more than {MAX_PARAMETERS} parameters, or is not percent-encoded UTF-8"
        ) from None


def encoded(text: str) -> str:
    """Percent-encode all but letters, digits and -._~, as both versions want it."""
    return quote(text, safe="")


def host_of(request: HttpRequest, expected: str | None) -> str:
    """Return the host that the request must be signed for: `expected`, or if that is None whatever Host it was sent to.

    A Host that says the same in another way, in capitals or with a default port, stands as it is: so it was signed.
    Raises CredentialError if there is no telling.
    """
    received = (request.header("Host") or "").strip()
    if expected is not None and _same(received) != _same(expected):
        # A proxy in front may have put its own there.
        return _same(expected)
    if not received:
        raise CredentialError("there is no header Host, for which the request could be signed")
    return received


def checked_body_hash(request: HttpRequest, claimed: str) -> str:
    """Return the hexadecimal SHA-256 of the body. Raises CredentialError if the request claims another."""
    actual = hashlib.sha256(request.body).hexdigest()
    if claimed != actual:
        raise CredentialError(f"{CONTENT_SHA256} is not the hexadecimal SHA-256 of the body")
    return actual


def seconds_of(text: str, form: str) -> int:
    """Return the second of the epoch that a UTC time means in a form of strptime's. Raises CredentialError."""
    try:
        return int(datetime.strptime(text, form).replace(tzinfo=timezone.utc).timestamp())
    except ValueError:
        raise CredentialError("the signature's date is none that the calendar knows") from None


def _same(host: str) -> str:
    return _DEFAULT_PORT.sub("", host.lower())
