"""AWS signatures, version 2, in the query: for old tools.

"Signature Version 2 signing process" in the AWS General Reference of old is the specification. It signs no body, so
here the query must have one parameter more, signed like the others: X-Amz-Content-SHA256.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import TYPE_CHECKING

from vnctoken.auth import CredentialError
from vnctoken.auth.signed import (
    CONTENT_SHA256,
    WINDOW_SECONDS,
    SignedRequest,
    checked_body_hash,
    encoded,
    host_of,
    parameters,
    path_of,
    seconds_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.auth import HttpRequest

METHODS = {"HmacSHA256": ("sha256", 32), "HmacSHA1": ("sha1", 20)}
"""The values of SignatureMethod: the hash of each, and the bytes of a signature."""

_CARRIED = re.compile(rb"(?:^|&)(?:AWSAccessKeyId|SignatureVersion)=")
_EXTENDED_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?Z")
_EXTENDED_FORM = "%Y-%m-%dT%H:%M:%S"


def carried(request: HttpRequest) -> bool:
    """Whether a request has something that looks like a signature of version 2, or of those before."""
    return bool(_CARRIED.search(request.uri.partition(b"?")[2]))


def read(request: HttpRequest, host: str | None) -> SignedRequest:
    """Read the signature of a request, which must be for `host`, see `signed.host_of`.

    Raises CredentialError if it cannot be read, or does not cover what it must.
    """
    pairs = parameters(request)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise CredentialError("the query has a parameter twice")
    if query.get("SignatureVersion") != "2":
        raise CredentialError("the SignatureVersion is not 2; older ones do not protect what they sign")
    method = METHODS.get(query.get("SignatureMethod", ""))
    if method is None:
        raise CredentialError(f"the SignatureMethod is none of {', '.join(METHODS)}")
    access_key = query.get("AWSAccessKeyId", "")
    if not access_key:
        raise CredentialError("there is no AWSAccessKeyId")
    if CONTENT_SHA256 not in query:
        raise CredentialError(
            f"version 2 does not sign the body: the query needs the parameter {CONTENT_SHA256}, the hexadecimal SHA-256"
            " of the body"
        )
    checked_body_hash(request, query[CONTENT_SHA256])
    algorithm, size = method
    made, not_before, not_after = _times(query)
    to_sign = b"\n".join(
        (request.method, host_of(request, host).lower().encode(), path_of(request), _canonical_query(query).encode())
    )
    return SignedRequest(
        access_key,
        _signature(query, size),
        lambda secret: hmac.digest(secret.encode(), to_sign, algorithm),
        made=made,
        not_before=not_before,
        not_after=not_after,
    )


def _times(query: Mapping[str, str]) -> tuple[int, int, int]:
    if ("Timestamp" in query) == ("Expires" in query):
        raise CredentialError("there must be one of the parameters Timestamp and Expires")
    if "Timestamp" in query:
        made = _seconds(query["Timestamp"])
        return made, made - WINDOW_SECONDS, made + WINDOW_SECONDS
    end = _seconds(query["Expires"])
    return end - WINDOW_SECONDS, end - WINDOW_SECONDS, end


def _seconds(text: str) -> int:
    match = _EXTENDED_TIME.fullmatch(text)
    if match is None:
        raise CredentialError("Timestamp or Expires is no date such as 2026-01-31T23:59:59Z")
    return seconds_of(match[1], _EXTENDED_FORM)


def _signature(query: Mapping[str, str], size: int) -> bytes:
    try:
        signature = base64.b64decode(query.get("Signature", ""), validate=True)
    except ValueError:
        signature = b""
    if len(signature) != size:
        raise CredentialError(f"the Signature is not {size} bytes in base64")
    return signature


def _canonical_query(query: Mapping[str, str]) -> str:
    # Sorted by the names' bytes in UTF-8, which is the order of code points, and not by what they are encoded to.
    return "&".join(f"{encoded(name)}={encoded(query[name])}" for name in sorted(query) if name != "Signature")
