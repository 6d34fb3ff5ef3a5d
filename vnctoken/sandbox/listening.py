"""Where the sandbox listens, and oned if asked to with oned's limit of simultaneous connections."""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.protocol import Factory
    from twisted.python.failure import Failure

BACKLOG = 15
"""How many connections may wait for being accepted, as oned's MAX_CONN_BACKLOG; the kernel drops others."""

_CLOSED = -1


def address(text: str) -> tuple[str, int]:
    """Read an option's HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def serve(
    reactor: Any,
    announcement: str,
    where: tuple[str, int],
    factory: Factory[Any],
    max_connections: int | None = None,
) -> Deferred[None]:
    """Listen on a host and port until the process is told to end, and print the announcement with the URL in it.

    Exits with a message if the address cannot be had.
    """
    host, port = where
    try:
        if max_connections is None:
            port = reactor.listenTCP(port, factory, backlog=511, interface=host).getHost().port
        else:
            port = LimitedPort(reactor, host, port, factory, max_connections).port
    except (OSError, CannotListenError) as error:
        sys.exit(f"Cannot listen on {host} port {port}: {error}")
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    # Not before the reactor handles signals: whoever waits for this line may end us at once.
    reactor.callWhenRunning(print, announcement.format(url=url), flush=True)
    return Deferred()


class LimitedPort(FileDescriptor):
    """Listens on a TCP port, and accepts only while fewer than `limit` connections are open.

    Like oned's, it leaves the others in the kernel's queue.
    `reactor` must provide IReactorFDSet and IReactorSocket, as those of every POSIX system do. Raises OSError
    if the address cannot be had. `port` tells where it listens.
    """

    reactor: Any

    def __init__(self, reactor: Any, interface: str, port: int, factory: Factory[Any], limit: int) -> None:
        super().__init__(reactor)
        self._limit = limit
        self._factory = _CountingFactory(factory, self._accept_again)
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        self._socket = socket.create_server((interface, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self.reactor.addReader(self)

    def fileno(self) -> int:
        """Return the file descriptor of the listening socket, -1 once it is closed."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """Accept one connection, and no more of them if it is the last allowed."""
        connection, _ = self._socket.accept()
        # A client may have given up while it waited for being accepted: then there is no peer to speak of.
        with connection, suppress(OSError):
            connection.setblocking(False)
            self.reactor.adoptStreamConnection(connection.fileno(), connection.family, self._factory)
        if len(self._factory.protocols) >= self._limit:
            self.reactor.removeReader(self)

    def _accept_again(self) -> None:
        # At the reactor's end connections are closed too, some of them later than this port.
        if self.fileno() != _CLOSED:
            self.reactor.addReader(self)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - any reason will do
        """Close the listening socket, as the reactor asks for at its end."""
        self._socket.close()


class _CountingFactory(WrappingFactory):
    noisy = False

    def __init__(self, factory: Factory[Any], one_less: Callable[[], None]) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self._one_less = one_less

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self._one_less()
