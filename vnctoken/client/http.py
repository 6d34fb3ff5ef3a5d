"""One HTTP POST within a deadline, for programs that may wait.

The timeouts of `http.client` start anew with each byte; here one is for all of it. Only looking a host name up is left
to the system's resolver and its own limits.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from vnctoken import __version__
from vnctoken.client.endpoints import MAX_ANSWER_BYTES
from vnctoken.client.errors import ClientError

if TYPE_CHECKING:
    from vnctoken.client.endpoints import Endpoint

HEADERS = {"Content-Type": "text/xml", "User-Agent": f"vnctoken/{__version__}"}


def post(endpoint: Endpoint, body: bytes, seconds: float, tls: ssl.SSLContext | None = None) -> bytes:
    """Return the body of the answer to `body`, which comes within `seconds`.

    `tls` says which certificates are good for an https endpoint; without it those are that the system trusts. Raises
    ClientError.
    """
    connection = _Connection(endpoint, time.monotonic() + seconds, tls)
    try:
        connection.request("POST", endpoint.target, body, {"Host": endpoint.netloc, **HEADERS})
        with connection.getresponse() as response:
            if response.status != HTTPStatus.OK:
                raise ClientError(f"{endpoint.url}: {in_words(response.status)}")
            answer = response.read(MAX_ANSWER_BYTES + 1)
            # Read to a bound, a body that ends too early is no error to http.client.
            if response.length:
                raise ClientError(f"{endpoint.url}: {_too_much_or_too_little(answer)}")
    except TimeoutError:
        raise ClientError(f"{endpoint.url}: no answer within {seconds:g} seconds") from None
    except http.client.RemoteDisconnected:
        raise ClientError(f"{endpoint.url}: the connection was closed without an answer") from None
    except (http.client.IncompleteRead, ConnectionResetError, BrokenPipeError):
        raise ClientError(f"{endpoint.url}: the connection was closed in the middle of it") from None
    except http.client.HTTPException:
        raise ClientError(f"{endpoint.url}: what answers there does not speak HTTP") from None
    except OSError as error:
        raise ClientError(f"{endpoint.url}: {_explained(error)}") from None
    finally:
        connection.hang_up()
    if len(answer) > MAX_ANSWER_BYTES:
        raise ClientError(f"{endpoint.url}: {_too_much_or_too_little(answer)}")
    return answer


def in_words(status: int) -> str:
    """Return what an HTTP status other than 200 says about the endpoint."""
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    return f"the answer is HTTP status {phrase}; is this the address of vnctoken-server?"


def _too_much_or_too_little(answer: bytes) -> str:
    if len(answer) > MAX_ANSWER_BYTES:
        return f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
    return "the connection was closed in the middle of it"


class _Connection(http.client.HTTPConnection):
    """A connection that is over at the deadline, in seconds of the monotonic clock, whatever the other end does."""

    def __init__(self, endpoint: Endpoint, deadline: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(endpoint.host, endpoint.port)
        self._endpoint = endpoint
        self._deadline = deadline
        self._tls = tls
        self._connected: socket.socket | None = None

    def connect(self) -> None:
        self._connected = self._reached()
        if self._endpoint.secure:
            tls = self._tls or ssl.create_default_context()
            # A handshake, unlike a read, is as a whole over when this time is.
            self._connected.settimeout(_left(self._deadline))
            self._connected = tls.wrap_socket(self._connected, server_hostname=self._endpoint.host)
        self.sock = _Timed(self._connected, self._deadline)

    def hang_up(self) -> None:
        """Let go of the connection; `close` is called by http.client, too, while the answer is still to be read."""
        self.close()
        if self._connected is not None:
            self._connected.close()

    def _reached(self) -> socket.socket:
        addresses = socket.getaddrinfo(self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            connecting = socket.socket(family, kind, protocol)
            try:
                # A share for each, so that one behind a silent firewall leaves time for the next.
                connecting.settimeout(_left(self._deadline) / (len(addresses) - number))
                connecting.connect(address)
            except OSError:
                connecting.close()
                if number == len(addresses) - 1:
                    raise
            except BaseException:
                connecting.close()
                raise
            else:
                return connecting
        raise OSError(f"the host {self._endpoint.host!r} has no address")


class _Timed:
    """A socket for http.client, each of whose operations has the time that is left."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected = connected
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._connected.settimeout(_left(self._deadline))
        self._connected.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._connected, self._deadline))

    def close(self) -> None:
        """Leave the socket to the reader."""


class _Reader(io.RawIOBase):
    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connected.settimeout(_left(self._deadline))
        return self._connected.recv_into(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _explained(error: OSError) -> str:
    """Say why there is no connection, in words that hold nothing which was sent."""
    match error:
        case ConnectionRefusedError():
            return "the connection is refused: nobody listens there"
        case socket.gaierror():
            return "the host has no address"
        case ssl.SSLCertVerificationError(verify_message=str(message)):
            return f"the certificate is not accepted: {message}"
        case ssl.SSLError(reason=str(reason)):
            return f"TLS: {reason}"
        case OSError(errno=int(number)):
            return os.strerror(number)
    return f"the connection broke ({type(error).__name__})"
