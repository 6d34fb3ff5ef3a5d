"""What programs ask that watch the service: /healthz, /readyz and /metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.web import http

from vnctoken.health import Report
from vnctoken.httpconnection import Answer, BoundedRequest
from vnctoken.httpserver import BoundedSite

if TYPE_CHECKING:
    from vnctoken.health import Health

# A question is its request line.
_MAX_QUESTION_BYTES = 1024
# The answer is of this moment, is what its type says, and is the last one on its connection.
_HEADERS = ((b"Cache-Control", b"no-store"), (b"X-Content-Type-Options", b"nosniff"), (b"Connection", b"close"))

Render = Callable[[str, Report], tuple[bytes, str]]
"""Makes the metrics' text and its media type of an Accept header and what the checks found."""


class MonitorSite(BoundedSite):
    """The endpoint for load balancers and Prometheus. Without `render` there are no metrics."""

    bound = "at :monitor_listen:"

    def __init__(self, health: Health, render: Render | None, reactor: Any, *, max_connections: int) -> None:
        super().__init__(self._answer, reactor, max_connections=max_connections, max_request_bytes=_MAX_QUESTION_BYTES)
        self._health = health
        self._render = render

    async def _answer(self, request: BoundedRequest) -> Answer:
        # One answer for each connection: 64 KiB of questions sent at once, and never read, were 36 MB of metrics.
        request.channel.persistent = False
        if not all(map(_is_this_machine, _values(request, b"Host"))):
            return _text("the Host must be an IP address or localhost", http.FORBIDDEN)
        answers = {b"/healthz": self._alive, b"/readyz": self._ready, b"/metrics": self._metrics}
        answer = answers.get(request.path)
        if answer is None:
            return _text("here are /healthz, /readyz and /metrics", http.NOT_FOUND)
        if request.method not in (b"GET", b"HEAD"):
            return _text("this is for GET and HEAD", http.NOT_ALLOWED, (b"Allow", b"GET, HEAD"))
        return await answer(request)

    async def _alive(self, _request: BoundedRequest) -> Answer:
        return _text("ok")

    async def _ready(self, _request: BoundedRequest) -> Answer:
        report = await self._health.report()
        status = http.OK if report.ready else http.SERVICE_UNAVAILABLE
        body = json.dumps(report.as_json()).encode()
        return Answer(body + b"\n", b"application/json", status=status, headers=_HEADERS)

    async def _metrics(self, request: BoundedRequest) -> Answer:
        if self._render is None:
            return _text(
                "there are no metrics without prometheus_client: install vnctoken[metrics]", http.NOT_IMPLEMENTED
            )
        body, media_type = self._render(",".join(_values(request, b"Accept")), await self._health.report())
        return Answer(body, media_type.encode(), headers=_HEADERS)


def _values(request: BoundedRequest, name: bytes) -> list[str]:
    return [value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(name, [])]


def _is_this_machine(host: str) -> bool:
    """Whether a Host header is none of a name that somebody's page made up to be let in by (DNS rebinding)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _text(line: str, status: int = http.OK, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(line.encode() + b"\n", status=status, headers=(*_HEADERS, *headers))
