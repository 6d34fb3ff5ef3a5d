"""One HTTP POST: one connection, one request, one answer. Lean, as every console call makes one.

`twisted.web.client.Agent` does the same with a general HTTP client; docs/performance.md says what that costs.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectionDone,
    DNSLookupError,
)
from twisted.internet.error import ConnectionRefusedError as TCPRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone

from vnctoken.errors import OnedError

if TYPE_CHECKING:
    from twisted.internet.address import IPv4Address, IPv6Address
    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
    from twisted.python.failure import Failure

MAX_HEADER_BYTES = 65_536
MAX_BODY_BYTES = 16 * 2**20
# How long a resolved address is used before the name is looked up again.
ADDRESS_SECONDS = 60.0


class HttpExchange:
    """Posts XML to one URL.

    `tls`, as `twisted.internet.ssl.optionsForClientTLS` makes it, is needed for https. The reactor connects, resolves
    names off its own thread, and tells the time.
    """

    def __init__(self, reactor: Any, url: str, tls: IOpenSSLClientConnectionCreator | None = None) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if tls else 80)
        self._reactor = reactor
        self._tls = tls
        self._factory = Factory.forProtocol(_Exchange)
        self._factory.noisy = False
        self._by_name = HostnameEndpoint(reactor, str(parts.hostname), port)
        self._by_address: IStreamClientEndpoint | None = None
        self._address_expires = 0.0
        # oned always closes after its answer, and answers nothing but POSTs with a Content-Length (WIRE.md 2).
        self._head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            "User-Agent: vnctoken\r\nContent-Type: text/xml\r\nContent-Length: "
        ).encode()

    async def post(self, body: bytes) -> bytes:
        """Return the body of the answer to `body`. Cancelling this closes the connection.

        Raises OnedError if there is no connection, no complete HTTP answer, or one other than 200.
        """
        exchange = await self._connect()
        return await exchange.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))

    async def _connect(self) -> _Exchange:
        if self._by_address is not None and self._reactor.seconds() < self._address_expires:
            try:
                return await self._connected(self._by_address)
            except ConnectError:
                self._by_address = None
        try:
            exchange = await self._connected(self._by_name)
        except TCPRefusedError:
            raise OnedError("oned refuses connections: it is not running, or not at :one_xmlrpc:") from None
        except DNSLookupError:
            raise OnedError("the host of :one_xmlrpc: has no address") from None
        except ValueError:
            raise OnedError("the host of :one_xmlrpc: is no host name") from None
        except ConnectError as error:
            raise OnedError(f"oned cannot be reached: {type(error).__name__}") from None
        self._remember(exchange.transport.getPeer())
        return exchange

    def _remember(self, peer: IPv4Address | IPv6Address) -> None:
        # Looking a name up takes a thread, and happy eyeballs timers: more than all the rest of a call.
        endpoint = TCP6ClientEndpoint if ":" in peer.host else TCP4ClientEndpoint
        self._by_address = endpoint(self._reactor, peer.host, peer.port)
        self._address_expires = self._reactor.seconds() + ADDRESS_SECONDS

    def _connected(self, endpoint: IStreamClientEndpoint) -> Deferred[_Exchange]:
        """Connect. Cancelled, this is a CancelledError and no connection, whatever the endpoint makes of it."""
        if self._tls:
            endpoint = wrapClientTLS(self._tls, endpoint)
        connecting: Deferred[Any] = endpoint.connect(self._factory)

        def give_up(connected: Deferred[_Exchange]) -> None:
            connected.errback(CancelledError())
            connecting.cancel()

        def deliver(outcome: Any) -> None:
            if not connected.called:
                connected.callback(outcome)
            elif isinstance(outcome, _Exchange):
                outcome.transport.abortConnection()

        connected: Deferred[_Exchange] = Deferred(give_up)
        connecting.addBoth(deliver)
        return connected


class _Exchange(Protocol):
    """The connection of one exchange."""

    transport: Any  # a TCP transport; ITransport does not know abortConnection

    def __init__(self) -> None:
        self._answered: Deferred[bytes] | None = None
        self._received = bytearray()
        self._body_at = 0
        self._length: int | None = None

    def ask(self, request: bytes) -> Deferred[bytes]:
        """Send a request and return its answer's body when it is complete."""
        self._answered = Deferred(lambda _: self._abort())
        self.transport.write(request)
        return self._answered

    def dataReceived(self, data: bytes) -> None:
        """Take a piece of the answer."""
        self._received += data
        try:
            if not self._body_at:
                self._read_head()
            if len(self._received) - self._body_at > MAX_BODY_BYTES:
                raise OnedError(f"oned's answer is longer than {MAX_BODY_BYTES} bytes")
        except OnedError as error:
            self._fail(error)
        else:
            if self._body_at and self._length is not None and len(self._received) >= self._body_at + self._length:
                self._succeed(self._body_at + self._length)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the end of the connection, which is the end of an answer that names no length."""
        if self._answered is None:
            return
        if self._body_at and self._length is None and reason.check(ConnectionDone):
            self._succeed(len(self._received))
        elif self._received:
            self._fail(OnedError("oned's answer is incomplete: the connection was closed in the middle of it"))
        elif reason.check(ConnectionDone):
            self._fail(OnedError("oned closed the connection without an answer"))
        else:
            self._fail(OnedError(f"the connection to oned failed: {_explained(reason.value)}"))

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if not self._received.startswith(b"HTTP/1."[: len(self._received)]) or (
            end < 0 and len(self._received) > MAX_HEADER_BYTES
        ):
            raise OnedError("what answers at :one_xmlrpc: does not speak HTTP")
        if end < 0:
            return
        status_line, *lines = bytes(self._received[:end]).split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        status = status_line.split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise OnedError(f"oned answered with HTTP status {_status(status)} instead of 200 OK")
        if b"transfer-encoding" in fields:
            raise OnedError("oned's answer has a Transfer-Encoding, which oned itself never uses; a proxy adds it")
        length = fields.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise OnedError("oned's answer has a Content-Length that is no number")
            self._length = int(length[:16])
        self._body_at = end + 4

    def _succeed(self, end: int) -> None:
        answered, self._answered = self._answered, None
        self.transport.loseConnection()
        if answered is not None:
            answered.callback(bytes(self._received[self._body_at : end]))

    def _fail(self, error: OnedError) -> None:
        answered, self._answered = self._answered, None
        self.transport.abortConnection()
        if answered is not None:
            answered.errback(error)

    def _abort(self) -> None:
        self._answered = None
        self.transport.abortConnection()


def _explained(error: BaseException | None) -> str:
    """Say why a connection broke; OpenSSL's errors are lists of (library, function, reason)."""
    match type(error).__name__, getattr(error, "args", ()):
        case "Error", [[[_, _, str(reason)], *_]]:
            return f"TLS: {reason}"
        case "VerificationError", _:
            return "TLS: the certificate is for another host"
    return type(error).__name__


def _status(field: list[bytes]) -> str:
    try:
        status = HTTPStatus(int(field[0]))
    except (ValueError, IndexError):
        return "unknown"
    return f"{status.value} {status.phrase}"
