"""An HTTP server with a bound on its connections, which are bounded themselves: see httpconnection.py.

Which paths and verbs there are is the matter of web.py.
"""
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.web import http

from vnctoken.httpconnection import REQUEST_SECONDS, Answer, BoundedChannel, BoundedRequest, last_words

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IDelayedCall
    from twisted.python.failure import Failure

REFUSAL_SECONDS = 1
"""How long a connection too many has to take its answer, if no more than MAX_REFUSALS are about it."""

MAX_REFUSALS = 64

Handler = Callable[[BoundedRequest], Coroutine[Deferred[Any], Any, Answer]]


class _Refusal(Protocol):
    """A connection too many. What it sends is thrown away for a moment: the client reads the answer, and no reset."""

    transport: Any

    def __init__(self, reactor: Any, refusals: set[_Refusal]) -> None:
        self._reactor = reactor
        self._refusals = refusals
        self._end: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Say so, and end."""
        self.transport.write(last_words(b"503 Service Unavailable", b"too many connections\n"))
        if len(self._refusals) >= MAX_REFUSALS:
            self.transport.loseConnection()
            return
        self._refusals.add(self)
        self.transport.loseWriteConnection()
        self._end = self._reactor.callLater(REFUSAL_SECONDS, self.transport.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 (Twisted calls us)
        """Take the end of the connection."""
        self._refusals.discard(self)
        if self._end is not None and self._end.active():
            self._end.cancel()


class BoundedSite(http.HTTPFactory):
    """The HTTP server: at most `max_connections` connections, and bodies of at most `max_request_bytes` bytes.

    The handler is asked for the answer to each request that has arrived whole. It is cancelled if the client leaves.
    """

    protocol: Any = BoundedChannel
    bound = ":max_connections:"
    """What the number of connections is bounded by, for the log."""
    noisy = False
    stopping = False
    _log = Logger()

    def __init__(self, handler: Handler, reactor: Any, *, max_connections: int, max_request_bytes: int) -> None:
        super().__init__(timeout=REQUEST_SECONDS, reactor=reactor)
        self.handler = handler
        self.max_request_bytes = max_request_bytes
        self._max_connections = max_connections
        self._channels: set[BoundedChannel] = set()
        self._refusals: set[_Refusal] = set()
        self._full = False
        # More than one, as several listeners may have one site.
        self._draining: list[Deferred[None]] = []

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._channels)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the protocol of a new connection."""
        if len(self._channels) >= self._max_connections:
            if not self._full:
                self._log.warn(
                    "{n} connections are open ({bound}); more are refused", n=len(self._channels), bound=self.bound
                )
            self._full = True
            return _Refusal(self.reactor, self._refusals)
        self._full = False
        channel: Any = super().buildProtocol(addr)
        self._channels.add(channel)
        return channel

    def forget(self, channel: BoundedChannel) -> None:
        """Take note of a connection that has ended."""
        self._channels.discard(channel)
        if not self._channels:
            draining, self._draining = self._draining, []
            for drained in draining:
                drained.callback(None)

    async def drain(self, seconds: float) -> None:
        """End the connections that are idle, and the others after their answers; after so many seconds, at once.

        Those that have not brought a request yet have FIRST_REQUEST_SECONDS for it.
        """
        self.stopping = True
        for channel in list(self._channels):
            channel.stop()
        if not self._channels:
            return
        drained: Deferred[None] = Deferred()
        self._draining.append(drained)
        try:
            await drained.addTimeout(seconds, self.reactor)
        except DeferredTimeoutError:
            self._draining.remove(drained)
            self._log.warn("{n} calls were cut off: they took longer to finish", n=len(self._channels))
            for channel in list(self._channels):
                channel.transport.abortConnection()

    def log(self, request: http.Request) -> None:
        """Keep no access log: calls are logged where their meaning is known."""
