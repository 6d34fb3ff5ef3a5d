"""One HTTP connection and its requests, with bounds: how much a request may weigh, and how long it may take.

twisted.web caps no bodies, and its idle timeout starts anew with every byte (so a client that sends one a minute stays
for ever); both are bounded here.
"""
# mypy: allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.web import http

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

REQUEST_SECONDS = 10
"""How long a request may take to arrive whole, and how long a connection may stay idle between two."""

FIRST_REQUEST_SECONDS = 1
"""How long a connection that has not brought a request yet has for it when the service is told to stop."""

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16_384
MAX_LENGTH_DIGITS = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered: the body and its type, the status, and further headers."""

    body: bytes
    content_type: bytes = b"text/plain; charset=utf-8"
    status: int = http.OK
    headers: tuple[tuple[bytes, bytes], ...] = ()


class BoundedRequest(http.Request):
    """A request whose body is kept in memory, up to the site's limit, and taken as it is.

    It is twisted.web.http's, without the tree of resources, sessions and encoders that twisted.web.server adds: one
    function answers here, and every call would pay for them.
    """

    channel: Any  # a BoundedChannel
    content: BytesIO
    _refused = False
    _log = Logger()

    def gotLength(self, length: int | None) -> None:
        """Take the body's length, None if it comes in chunks."""
        self.content = BytesIO()
        if length is not None and length > self.channel.factory.max_request_bytes:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._refused:
            return
        if self.content.tell() + len(data) > self.channel.factory.max_request_bytes:
            self._refuse()
        else:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer the request, now that it is whole.

        Twisted's own reads forms first, and breaks on a multipart Content-Type with no form behind it; here the
        Content-Type does not count.
        """
        if self._refused:
            self.channel.loseConnection()
            return
        self.content.seek(0)
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.channel.take_turn(self.process)

    def process(self) -> None:
        """Ask the site's function for the answer, and deliver it."""
        if self.channel is None:
            return  # gone, before it was its turn
        self.setHeader(b"Date", http.datetimeToString())
        answering = Deferred.fromCoroutine(self.channel.factory.handler(self))
        # The client that goes away takes its question with it.
        self.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addCallbacks(self._deliver, self._fail)

    def _deliver(self, answer: Answer) -> None:
        if self.channel is None:
            return  # gone, in the moment between the answer and now
        self.setResponseCode(answer.status)
        self.setHeader(b"Content-Type", answer.content_type)
        self.setHeader(b"Content-Length", b"%d" % len(answer.body))
        for name, value in answer.headers:
            self.setHeader(name, value)
        self.write(answer.body)
        self.finish()

    def _fail(self, failure: Failure) -> None:
        if failure.check(CancelledError) and self.channel is None:
            return
        self._log.failure("a request could not be answered", failure)
        self._deliver(Answer(b"internal error\n", status=http.INTERNAL_SERVER_ERROR))

    def _refuse(self) -> None:
        """Answer at once; what still comes is thrown away, so that the client reads the answer and not a reset."""
        self._refused = True
        self.content.close()
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.refuse(
            b"413 Content Too Large", b"a request may have %d bytes\n" % self.channel.factory.max_request_bytes
        )


class BoundedChannel(http.HTTPChannel):
    """A connection on which a request must arrive whole in time."""

    factory: Any  # a BoundedSite
    requestFactory = BoundedRequest
    transport: Any
    totalHeadersSize = MAX_HEADER_BYTES
    maxHeaders = MAX_HEADERS
    _busy = False
    _fresh = True
    _refused = False
    _ending = False
    _receiving = False
    _had_turn = False

    def dataReceived(self, data: bytes) -> None:
        """Start the clock at a request's first byte; a line end too many after the last one is none."""
        if not self._busy and data.strip(b"\r\n"):
            self._begin()
        if self._receiving:
            # Twisted hands itself what came behind the request that it has just dealt with.
            super().dataReceived(data)
            return
        self._receiving, self._had_turn = True, False
        try:
            super().dataReceived(data)
        finally:
            self._receiving = False

    def take_turn(self, work: Callable[[], None]) -> None:
        """Do what a request asks for; if another one came together with it, when everybody else has had a turn.

        A thousand requests have room in what is read at once, and nobody else would be served in the meantime.
        """
        if self._had_turn:
            self.factory.reactor.callLater(0, work)
            return
        self._had_turn = True
        work()

    def lineReceived(self, line: bytes) -> None:
        """Take a line of the head, which may begin a request that came together with the one before it."""
        if line and not self._busy:
            self._begin()
        super().lineReceived(line)

    def _begin(self) -> None:
        self._busy = True
        self._fresh = False
        self.setTimeout(REQUEST_SECONDS)

    def resetTimeout(self) -> None:
        """Do nothing: Twisted would start the clock anew at every byte."""

    def headerReceived(self, line: bytes) -> bool:
        """Take a header; a Content-Length of thousands of digits is more than Python reads."""
        if len(line) > MAX_LENGTH_DIGITS and line.partition(b":")[0].strip().lower() == b"content-length":
            self.refuse(b"400 Bad Request", b"the Content-Length is no length\n")
            self.loseConnection()
            return False
        return bool(super().headerReceived(line))

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 (Twisted calls us)
        """Answer a line of the head that is too long; Twisted would close without a word."""
        self.refuse(b"400 Bad Request", b"a line of the head is longer than %d bytes\n" % self.MAX_LENGTH)
        self.loseConnection()

    def requestDone(self, request: http.Request) -> None:
        """Take the end of an answer."""
        self._busy = False
        super().requestDone(request)
        if self.factory.stopping and not self._busy:
            self.loseConnection()

    def loseConnection(self) -> None:
        """End the connection once the client has taken what was written, for which it has as long as for a request."""
        self._ending = True
        self.setTimeout(REQUEST_SECONDS)
        super().loseConnection()

    def timeoutConnection(self) -> None:
        """End a connection whose request did not arrive in time, or whose answer was not taken."""
        if self._ending:
            self.transport.abortConnection()
            return
        if self._busy and not self._refused:
            self.refuse(b"408 Request Timeout", b"a request must arrive within %d seconds\n" % REQUEST_SECONDS)
        self.loseConnection()

    def refuse(self, status: bytes, text: bytes) -> None:
        """Write an answer to a request that will not be read."""
        self._refused = True
        self.transport.write(last_words(status, text))

    def stop(self) -> None:
        """End the connection, after the answer if a request is on its way.

        A client that has just connected is about to send one, and would lose its call.
        """
        if self._fresh:
            self.setTimeout(FIRST_REQUEST_SECONDS)
        elif not self._busy:
            self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the end of the connection."""
        self.factory.forget(self)
        super().connectionLost(reason)


def last_words(status: bytes, text: bytes) -> bytes:
    """Return an answer after which the connection ends."""
    return (
        b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(text), text)
    )
