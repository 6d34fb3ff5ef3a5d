"""Where a service answers: URLs, checked before anything is sent there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT = "http://127.0.0.1:2644/RPC2"
"""Where vnctoken-server listens unless it is told otherwise."""

MAX_ANSWER_BYTES = 16 * 2**20

_WANTED = "expected http:// or https://, a host, and a path, such as " + DEFAULT


@dataclass(frozen=True)
class Endpoint:
    """The parts of an XML-RPC server's URL."""

    url: str
    secure: bool
    host: str
    port: int
    netloc: str
    target: str


def endpoint(url: str) -> Endpoint:
    """Return the parts of a URL. Raises ValueError if it is none that can be called; it may hold no password."""
    if not re.fullmatch("[!-~]+", url):
        raise ValueError(f"the endpoint is empty or has characters that no URL has; {_WANTED}")
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ValueError(f"the endpoint's host or port is none; {_WANTED}") from None
    if "@" in parts.netloc:
        raise ValueError(f"the endpoint has a user name in it, which the session is for; {_WANTED}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the endpoint is {url!r}; {_WANTED}")
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(url, secure, parts.hostname, port or (443 if secure else 80), parts.netloc, target)
