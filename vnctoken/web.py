"""The HTTP side: which paths and verbs there are, for calls and for the resolver."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.address import UNIXAddress
from twisted.web import http

from vnctoken.auth import HttpRequest
from vnctoken.errors import VnctokenError
from vnctoken.httpconnection import Answer, BoundedRequest
from vnctoken.httpserver import BoundedSite

if TYPE_CHECKING:
    from vnctoken.auth.proxies import TrustedProxies
    from vnctoken.resolver import Resolver
    from vnctoken.rpc import Rpc

# A question to the resolver is its request line.
_MAX_QUESTION_BYTES = 1024
_TOKEN_PATH = b"/token/"


class RpcSite(BoundedSite):
    """The XML-RPC endpoint. POST, and GET with a body for some clients of old."""

    def __init__(
        self, rpc: Rpc, reactor: Any, proxies: TrustedProxies, *, max_connections: int, max_request_bytes: int
    ) -> None:
        super().__init__(self._answer, reactor, max_connections=max_connections, max_request_bytes=max_request_bytes)
        self.serve(rpc, proxies)

    def serve(self, rpc: Rpc, proxies: TrustedProxies) -> None:
        """Have calls answered by this from now on, with these proxies trusted; those in flight end as they began."""
        self._rpc = rpc
        self._proxies = proxies

    async def _answer(self, request: BoundedRequest) -> Answer:
        """Lead every path that starts with /RPC2 to the XML-RPC side; an extra slash before it is forgiven."""
        if not unquote_to_bytes(request.path).lstrip(b"/").startswith(b"RPC2"):
            return Answer(b"XML-RPC is at /RPC2\n", status=http.NOT_FOUND)
        if request.method not in (b"POST", b"GET"):
            allowed = ((b"Allow", b"GET, POST"),)
            return Answer(b"XML-RPC calls are POSTs\n", status=http.NOT_ALLOWED, headers=allowed)
        headers, peer = request.requestHeaders, request.getClientAddress()
        # Nobody else may pass for a Unix socket's other end, which is trusted.
        origin = self._proxies.origin(None if isinstance(peer, UNIXAddress) else peer.host, headers)
        call = HttpRequest(request.method, request.uri, headers, request.content.read(), *origin)
        return Answer(await self._rpc.answer(call), b"text/xml; charset=utf-8")


class ResolverSite(BoundedSite):
    """The resolver's endpoint, GET /token/<token>, for websockify's plugin JSONTokenApi: host and port in JSON, or 404.

    With X-Real-IP it is the web server that asks, whether the client at this address may use the token: 200, or 403.
    nginx's auth_request hands a 403 on to the browser, and makes a 500 of a 404. This answer names no target: whoever
    is told one has used the token.
    """

    def __init__(self, resolver: Resolver, reactor: Any, *, max_connections: int) -> None:
        super().__init__(self._answer, reactor, max_connections=max_connections, max_request_bytes=_MAX_QUESTION_BYTES)
        self._resolver = resolver

    async def _answer(self, request: BoundedRequest) -> Answer:
        if not request.path.startswith(_TOKEN_PATH):
            return Answer(b"tokens are at /token/\n", status=http.NOT_FOUND)
        if request.method != b"GET":
            # HEAD too: it would use the token, or tell about it without.
            allowed = ((b"Allow", b"GET"),)
            return Answer(b"tokens are looked up by GET\n", status=http.NOT_ALLOWED, headers=allowed)
        # What is no UTF-8 is no token, and is looked up like any other that is none.
        token = unquote_to_bytes(request.path.removeprefix(_TOKEN_PATH)).decode(errors="replace")
        clients = request.requestHeaders.getRawHeaders(b"X-Real-IP")
        try:
            if clients is None:
                target = await self._resolver.resolve(token)
                if target is None:
                    return Answer(b"no such token\n", status=http.NOT_FOUND)
                return _json(host=target[0], port=target[1])
            # Of several, all but one are somebody's invention, and nobody knows which.
            client = clients[0].decode("latin-1") if len(clients) == 1 else ""
            if await self._resolver.admit(token, client):
                return _json()
            return Answer(b"no such token for this client\n", status=http.FORBIDDEN)
        except VnctokenError:
            return Answer(b"this cannot be told now; the log says why\n", status=http.SERVICE_UNAVAILABLE)


def _json(**members: str | int) -> Answer:
    return Answer(json.dumps(members).encode(), b"application/json")
