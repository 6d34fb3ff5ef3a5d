"""AWS signatures, version 4, in the header Authorization.

"Signature Version 4 signing process" in the IAM User Guide of AWS is the specification. Of services, only `s3` has a
rule of its own: its paths are signed as they are sent, all others' normalised and encoded once more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

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
    from vnctoken.auth import HttpRequest

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_AUTHORIZATION_CHARACTERS = 4096
MAX_SIGNED_HEADERS = 100

_PRESIGNED = re.compile(rb"(?:^|&)X-Amz-(?:Algorithm|Credential|Signature)=", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_SIGNATURE = re.compile("[0-9a-f]{64}")
_BASIC_TIME = re.compile("[0-9]{8}T[0-9]{6}Z")
_BASIC_FORM = "%Y%m%dT%H%M%SZ"
_MAX_DATE_CHARACTERS = 64
_SCOPE_PARTS = 4
_TERMINATOR = "aws4_request"


class _Scope(NamedTuple):
    date: str
    region: str
    service: str
    terminator: str


def carried(request: HttpRequest) -> bool:
    """Whether a request has something that looks like a signature of version 4."""
    values = request.headers.getRawHeaders(b"Authorization") or ()
    return any(value.lstrip()[:3].upper() == b"AWS" for value in values) or bool(
        _PRESIGNED.search(request.uri.partition(b"?")[2])
    )


def read(request: HttpRequest, host: str | None) -> SignedRequest:
    """Read the signature of a request, which must be for `host`, see `signed.host_of`.

    Raises CredentialError if it cannot be read, or does not cover what it must.
    """
    if _PRESIGNED.search(request.uri.partition(b"?")[2]):
        raise CredentialError(
            "it is a presigned URL, which vouches for no body; sign the request in its header Authorization"
        )
    fields = _fields((request.header("Authorization") or "").strip())
    access_key, scope = _credential(fields["Credential"])
    names = _signed_headers(fields["SignedHeaders"])
    if not _SIGNATURE.fullmatch(fields["Signature"]):
        raise CredentialError("the Signature is not 64 hexadecimal digits in lower case")
    timestamp = _timestamp(request, names)
    made = seconds_of(timestamp, _BASIC_FORM)
    if scope.date != timestamp[:8]:
        raise CredentialError("the date in the Credential is another than the request's")
    canonical = _canonical_request(request, host, names, scope.service)
    to_sign = "\n".join((ALGORITHM, timestamp, "/".join(scope), hashlib.sha256(canonical).hexdigest()))
    return SignedRequest(
        access_key,
        bytes.fromhex(fields["Signature"]),
        lambda secret: _sign(secret, scope, to_sign),
        made=made,
        not_before=made - WINDOW_SECONDS,
        not_after=made + WINDOW_SECONDS,
    )


def _fields(authorization: str) -> dict[str, str]:
    if len(authorization) > MAX_AUTHORIZATION_CHARACTERS:
        raise CredentialError(f"the Authorization is longer than {MAX_AUTHORIZATION_CHARACTERS} characters")
    scheme, _, rest = authorization.partition(" ")
    if scheme != ALGORITHM:
        raise CredentialError(f"the Authorization is a signature other than {ALGORITHM}")
    parts = [part.strip().partition("=") for part in rest.split(",")]
    fields = {name: value for name, _, value in parts}
    expected = ("Credential", "SignedHeaders", "Signature")
    if sorted(name for name, _, _ in parts) != sorted(expected):
        raise CredentialError(f"the Authorization does not consist of {', '.join(expected)}")
    return fields


def _credential(text: str) -> tuple[str, _Scope]:
    # A user's name may have a slash, the scope has none.
    access_key, *parts = text.rsplit("/", _SCOPE_PARTS)
    if len(parts) != _SCOPE_PARTS or not access_key or parts[-1] != _TERMINATOR:
        raise CredentialError(f"the Credential is not NAME/DATE/REGION/SERVICE/{_TERMINATOR}")
    return access_key, _Scope(*parts)


def _signed_headers(text: str) -> list[str]:
    names = text.split(";")
    if len(names) > MAX_SIGNED_HEADERS:
        raise CredentialError(f"there are more than {MAX_SIGNED_HEADERS} signed headers")
    if names != sorted(set(names)) or not all(map(_HEADER_NAME.fullmatch, names)):
        raise CredentialError("SignedHeaders is not a sorted list of names in lower case, with semicolons between them")
    if "host" not in names:
        raise CredentialError("the header Host is not among the signed ones")
    return names


def _timestamp(request: HttpRequest, names: list[str]) -> str:
    """Return the request's time in ISO 8601's basic form, which is what is signed."""
    name, text = "X-Amz-Date", request.header("X-Amz-Date")
    if text is None:
        name, text = "Date", request.header("Date")
    if text is None:
        raise CredentialError("there is neither a header X-Amz-Date nor Date")
    if name.lower() not in names:
        raise CredentialError(f"the header {name} is not among the signed ones")
    text = text.strip()
    if _BASIC_TIME.fullmatch(text):
        return text
    if name != "Date" or len(text) > _MAX_DATE_CHARACTERS:
        raise CredentialError(f"the header {name} is no date such as 20260131T235959Z")
    try:
        moment = parsedate_to_datetime(text)
        # "-0000", as botocore writes it, is UTC, and has no zone here.
        moment = moment.astimezone(timezone.utc) if moment.tzinfo else moment
    except (ValueError, TypeError, IndexError, OverflowError):
        raise CredentialError("the header Date is no date") from None
    return datetime.strftime(moment, _BASIC_FORM)


def _canonical_request(request: HttpRequest, host: str | None, names: list[str], service: str) -> bytes:
    # The body's own hash is signed, whatever the header says. "UNSIGNED-PAYLOAD" and "STREAMING-..." are no hashes.
    claimed = request.header(CONTENT_SHA256)
    body_hash = hashlib.sha256(request.body).hexdigest() if claimed is None else checked_body_hash(request, claimed)
    pairs = sorted((encoded(name), encoded(value)) for name, value in parameters(request))
    return b"\n".join(
        (
            request.method,
            path_of(request) if service == "s3" else _canonical_path(path_of(request)),
            "&".join(f"{name}={value}" for name, value in pairs).encode(),
            *(name.encode() + b":" + _header_value(request, host, name) for name in names),
            b"",
            ";".join(names).encode(),
            body_hash.encode(),
        )
    )


def _canonical_path(path: bytes) -> bytes:
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    end = b"/" if segments and path.endswith(b"/") else b""
    return quote(b"/" + b"/".join(segments) + end, safe="/~").encode()


def _header_value(request: HttpRequest, host: str | None, name: str) -> bytes:
    if name == "host":
        return host_of(request, host).encode()
    values = request.headers.getRawHeaders(name.encode())
    if not values:
        raise CredentialError("a signed header is not there; a proxy in front may have taken it away")
    return b",".join(b" ".join(value.split()) for value in values)


def _sign(secret: str, scope: _Scope, to_sign: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for text in (*scope, to_sign):
        key = hmac.digest(key, text.encode(), "sha256")
    return key
