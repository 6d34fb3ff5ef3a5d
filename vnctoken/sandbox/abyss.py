"""HTTP as Abyss speaks it, the small web server inside oned: one POST to one path, one answer, close."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet.protocol import Protocol

from vnctoken.sandbox.behaviour import Kind, spoil_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from vnctoken.sandbox.behaviour import Behaviour

PATH = b"/RPC2"
_SERVER = "Xmlrpc-c_Abyss/1.33.14"
_PAGE = (
    "<HTML><HEAD><TITLE>Error {status}</TITLE></HEAD><BODY><H1>Error {status}</H1><P>{explanation}</P><p><HR>"
    '<b><i><a href="http://xmlrpc-c.sourceforge.net">ABYSS Web Server for XML-RPC For C/C++</a></i></b>'
    " version 1.33.14<br></p></BODY></HTML>"
)


class Clock(Interface):
    """What tells the time: a reactor, or a `twisted.internet.task.Clock`."""

    def seconds(self) -> float:
        """Return the time, in seconds since the epoch."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Any:  # noqa: A002
        """Call in `delay` seconds; return what can be cancelled."""


class HttpError(Exception):
    """Raised if a request is not one for a method call; the text is for the page that answers it."""

    def __init__(self, status: int, reason: str, explanation: str) -> None:
        super().__init__(explanation)
        self.status = status
        self.reason = reason

    def message(self, now: float) -> bytes:
        """Return the whole HTTP answer; `now` is in seconds since the epoch."""
        page = _PAGE.format(status=self.status, explanation=self)
        return _head(f"{self.status} {self.reason}", "Content-type: text/html\r\n", now) + page.encode()


def _head(status: str, content: str, now: float) -> bytes:
    date = formatdate(now, usegmt=True).replace("GMT", "UTC")
    return (f"HTTP/1.1 {status}\r\n{content}Connection: close\r\nDate: {date}\r\nServer: {_SERVER}\r\n\r\n").encode()


def _message(body: bytes, now: float) -> bytes:
    content = f"Content-type: text/xml; charset=utf-8\r\nContent-length: {len(body)}\r\n"
    return _head("200 OK", content, now) + body


def body_length(head: bytes) -> int:
    """Return how many bytes of body follow a request's head; raise `HttpError` if it is not for us."""
    request_line, *lines = head.split(b"\r\n")
    try:
        method, target, _version = request_line.split(b" ")
    except ValueError:
        raise HttpError(400, "Bad Request", "The request line is not METHOD PATH VERSION") from None
    if target.partition(b"?")[0] != PATH:
        raise HttpError(404, "Not Found", "This server answers at one path only, /RPC2, and it is not yours")
    if method != b"POST":
        raise HttpError(405, "Method Not Allowed", "POST is the only HTTP method this server understands")
    fields = (line.partition(b":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    length = headers.get(b"content-length")
    if length is None or b"transfer-encoding" in headers:
        raise HttpError(411, "Length Required", "A call needs a content-length HTTP header, and no chunks")
    if not length.isdigit():
        raise HttpError(400, "Bad Request", "The value of your content-length HTTP header is no number")
    if int(length) == 0:
        explanation = "According to your content-length HTTP header, your request is empty (zero length)"
        raise HttpError(400, "Bad Request", explanation)
    return int(length)


class Abyss(Protocol):
    """One connection: `reply` makes of a request's body that of the answer, and says how to send it."""

    # Twisted's own type says that there may be none; here it is a TCP transport, or a test's.
    transport: Any

    def __init__(self, reply: Callable[[bytes], tuple[bytes, Behaviour]], clock: Clock) -> None:
        self._reply = reply
        self._clock = clock
        self._received = b""
        self._body_start = 0
        self._body_end = 0
        self._answered = False
        self._later: Any = None

    def dataReceived(self, data: bytes) -> None:
        """Collect the request, and answer once it is whole; what comes after it is not read."""
        if self._answered:
            return
        self._received += data
        if not self._body_end and not self._read_head():
            return
        if len(self._received) >= self._body_end:
            self._answered = True
            body, behaviour = self._reply(self._received[self._body_start : self._body_end])
            if behaviour.delay:
                self._later = self._clock.callLater(behaviour.delay, self._send, body, behaviour)
            else:
                self._send(body, behaviour)

    def _read_head(self) -> bool:
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        self._body_start = len(head) + len(end)
        try:
            self._body_end = self._body_start + body_length(head)
        except HttpError as error:
            self._answered = True
            self._finish(error.message(self._clock.seconds()))
            return False
        return True

    def _send(self, body: bytes, behaviour: Behaviour) -> None:
        message = spoil_message(behaviour.kind, _message(body, self._clock.seconds()))
        match behaviour.kind:
            case Kind.HANG:
                pass
            case Kind.RESET:
                self.transport.abortConnection()
            case Kind.CLOSE:
                self.transport.loseConnection()
            case Kind.HALF:
                self.transport.write(message)
            case Kind.DRIP:
                self._drip(message, behaviour.pause)
            case _:
                self._finish(message)

    def _finish(self, message: bytes) -> None:
        self.transport.write(message)
        self.transport.loseConnection()

    def _drip(self, message: bytes, pause: float) -> None:
        if len(message) == 1:
            self._finish(message)
        else:
            self.transport.write(message[:1])
            self._later = self._clock.callLater(pause, self._drip, message[1:], pause)

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 - any reason will do
        """Forget what was to be sent later."""
        if self._later is not None and self._later.active():
            self._later.cancel()
