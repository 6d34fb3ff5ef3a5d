"""What the doctor learns over the network: a console through the running proxy, and single HTTP requests.

Every probe ends within the seconds that it is given, and says in words why it got no answer.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionDone, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as TCPRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone

from vnctoken.addresses import write_address
from vnctoken.tls import client_tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from twisted.internet.interfaces import IStreamClientEndpoint
    from twisted.python.failure import Failure

MAX_BYTES = 2**20
"""More than any answer that a probe waits for."""

# RFC 6455: a server's frames are not masked, and have two bytes before data that is short. A close frame's data begins
# with a code; 1011 is what websockify says when it found the token and could not connect.
_BINARY_FRAME = b"\x82"
_CLOSE_FRAME = b"\x88"
_NO_TARGET = 1011

_HEAD_END = b"\r\n\r\n"


class NoAnswerError(Exception):
    """Raised if a probe got no answer; its text says why, and holds nothing that was sent."""


class Console(Enum):
    """What became of a token that was shown to a proxy."""

    OPENED = auto()
    NOT_FOUND = auto()
    """The connection was closed without a word, as websockify does with tokens that it does not find."""
    TARGET_UNREACHABLE = auto()
    ELSEWHERE = auto()
    """The handshake was accepted, but what the target says did not come."""
    REFUSED = auto()
    """Some other answer to the handshake."""


@dataclass(frozen=True)
class HttpAnswer:
    """The answer to a request."""

    status: int
    body: bytes


@asynccontextmanager
async def target(reactor: Any, interface: str, marker: bytes) -> AsyncIterator[int]:
    """Listen, for a block's time, as a console would; whoever connects is sent `marker`. Gives the port."""
    factory = Factory.forProtocol(lambda: _Greeter(marker))
    factory.noisy = False
    port = reactor.listenTCP(0, factory, interface=interface)
    try:
        yield port.getHost().port
    finally:
        await maybeDeferred(port.stopListening)


async def open_console(reactor: Any, address: tuple[str, int], token: str, marker: bytes, seconds: float) -> Console:
    """Open a token's console through the websocket proxy at an address, and wait for `marker` from the other end.

    Raises NoAnswerError if the proxy cannot be reached.
    """
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    request = (
        f"GET /websockify?token={quote(token, safe='')} HTTP/1.1\r\nHost: {write_address(address)}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n"
        f"Sec-WebSocket-Key: {key}\r\n\r\n"
    )

    def settled(data: bytes) -> bool:
        head, end, frames = data.partition(_HEAD_END)
        return bool(end) and (_status(head) != HTTPStatus.SWITCHING_PROTOCOLS or _tells(frames, marker))

    answer = await _converse(reactor, HostnameEndpoint(reactor, *address), request.encode(), settled, seconds)
    head, end, frames = answer.data.partition(_HEAD_END)
    if marker in frames:
        return Console.OPENED
    if not answer.data and answer.ended is None:
        raise NoAnswerError(f"no answer to the websocket handshake within {seconds:g} seconds")
    if end and _status(head) != HTTPStatus.SWITCHING_PROTOCOLS:
        return Console.REFUSED
    if frames[:1] == _CLOSE_FRAME and int.from_bytes(frames[2:4], "big") == _NO_TARGET:
        return Console.TARGET_UNREACHABLE
    # Older ones shake hands first, and then close without a word.
    return Console.NOT_FOUND if not frames and answer.ended is not None else Console.ELSEWHERE


async def ask(
    reactor: Any, url: str, seconds: float, *, body: bytes | None = None, socket: Path | None = None
) -> HttpAnswer:
    """Return the answer to a GET, or to a POST of XML if there is a body; over a Unix socket if one is named.

    With https the certificate is verified by the system's CAs. Raises NoAnswerError, and ConfigError without pyOpenSSL.
    """
    parts = urlsplit(url)
    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port)
    if socket is not None:
        endpoint = UNIXClientEndpoint(reactor, str(socket))  # type: ignore[no-untyped-call]
    elif parts.scheme == "https":
        endpoint = wrapClientTLS(client_tls(None, "", f"{url} is asked for")(host), endpoint)
    # 1.0, so that nobody answers in chunks.
    head = f"{'GET' if body is None else 'POST'} {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n"
    if body is not None:
        head += f"Content-Type: text/xml\r\nContent-Length: {len(body)}\r\n"
    answer = await _converse(reactor, endpoint, f"{head}\r\n".encode() + (body or b""), _complete, seconds)
    received, end, content = answer.data.partition(_HEAD_END)
    if end and _status(received):
        return HttpAnswer(_status(received), content)
    if answer.data:
        raise NoAnswerError("what answers there does not speak HTTP")
    if answer.ended is None:
        raise NoAnswerError(f"no answer within {seconds:g} seconds")
    raise NoAnswerError(_explained(answer.ended.value))


def in_words(status: int) -> str:
    """Return what an HTTP status is called."""
    try:
        return f"the answer is HTTP status {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"the answer is HTTP status {status}"


@dataclass(frozen=True)
class _Received:
    """What came, and how the other end ended it; None if it did not."""

    data: bytes
    ended: Failure | None


class _Conversation(Protocol):
    """Says one thing and gathers what comes, until that is enough or somebody ends it."""

    transport: Any

    def __init__(self, request: bytes, enough: Callable[[bytes], bool]) -> None:
        self._request = request
        self._enough = enough
        self._data = bytearray()
        self.heard: Deferred[_Received] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_BYTES or self._enough(bytes(self._data)):
            self.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._tell(reason)

    def end(self) -> None:
        """Listen no longer."""
        self._tell(None)
        self.transport.abortConnection()

    def _tell(self, ended: Failure | None) -> None:
        if not self.heard.called:
            self.heard.callback(_Received(bytes(self._data), ended))


class _Greeter(Protocol):
    """Says the marker and goes."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker

    def connectionMade(self) -> None:
        assert self.transport is not None  # noqa: S101 (for mypy: it is connected)
        self.transport.write(self._marker)
        self.transport.loseConnection()


async def _converse(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    request: bytes,
    enough: Callable[[bytes], bool],
    seconds: float,
) -> _Received:
    """Connect, say `request`, and return what comes until it is enough, the other end closes, or the time is up."""
    deadline = reactor.seconds() + seconds
    factory = Factory.forProtocol(lambda: _Conversation(request, enough))
    factory.noisy = False
    try:
        conversation = await endpoint.connect(factory).addTimeout(seconds, reactor, _late)
    except TCPRefusedError:
        raise NoAnswerError("nobody listens there") from None
    except DNSLookupError:
        raise NoAnswerError("the host name has no address") from None
    except ConnectError as error:
        raise NoAnswerError(f"no connection ({_reason(error)})") from None
    except ValueError:
        raise NoAnswerError("the host is no host name") from None
    assert isinstance(conversation, _Conversation)  # noqa: S101 (for mypy)
    ending = reactor.callLater(max(deadline - reactor.seconds(), 0), conversation.end)
    try:
        return await conversation.heard
    finally:
        if ending.active():
            ending.cancel()


def _late(_outcome: object, timeout: float) -> Any:
    raise NoAnswerError(f"no connection within {timeout:g} seconds")


def _reason(error: ConnectError) -> str:
    number = error.osError
    return os.strerror(number) if isinstance(number, int) else type(error).__name__


def _status(head: bytes) -> int:
    """Return the status code of an HTTP answer, 0 if it is none."""
    line = re.match(rb"HTTP/1\.[01] ([0-9]{3})\b", head)
    return int(line[1]) if line else 0


def _tells(frames: bytes, marker: bytes) -> bool:
    """Whether the first frame is all of the marker, something else, or the end."""
    if frames[:1] == _CLOSE_FRAME:
        return len(frames) >= 2 + frames[1]
    return marker in frames or (frames[:1] == _BINARY_FRAME and not marker.startswith(frames[2:]))


def _complete(data: bytes) -> bool:
    """Whether an answer has come whole, though the connection was left open."""
    head, end, body = data.partition(_HEAD_END)
    length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(\r\n|$)", head, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])


def _explained(error: BaseException | None) -> str:
    """Say why a connection ended without an answer; OpenSSL's errors are lists of (library, function, reason)."""
    match type(error).__name__, getattr(error, "args", ()):
        case "Error", [[[_, _, "certificate verify failed"], *_]]:
            return "its certificate is not trusted here: expired, signed by itself, or by an authority not known here"
        case "Error", [[[_, _, str(reason)], *_]]:
            return f"TLS: {reason}"
        case "VerificationError", _:
            return "its certificate is for another host"
    if isinstance(error, ConnectionDone):
        return "the connection was closed without an answer"
    return f"the connection broke ({type(error).__name__})"
