"""A listening service at a TCP address or a Unix socket."""
# mypy: allow-untyped-calls

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from vnctoken.addresses import write_address
from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from vnctoken.httpserver import BoundedSite
    from vnctoken.values import Listener

BACKLOG = 511
SOCKET_MODE = 0o660


class ListenerService(Service):
    """An HTTP server that listens while it runs; then calls in flight have `drain_seconds` to end.

    `setting` is the configuration's key for the address, for messages. `inherited` is the number of a TCP socket that
    listens already, to be used in the address's place; who has handed it over goes on listening when we end.
    """

    _port: Any = None
    _log = Logger()

    def __init__(  # noqa: PLR0913 (where it listens, and how it ends)
        self,
        site: BoundedSite,
        reactor: Any,
        listener: Listener,
        *,
        setting: str,
        drain_seconds: float,
        inherited: int | None = None,
    ) -> None:
        self._site = site
        self._reactor = reactor
        self._listener = listener
        self._setting = setting
        self._drain_seconds = drain_seconds
        self._inherited = inherited

    @property
    def address(self) -> str:
        """Where it listens, as the configuration writes it, with the real port if 0 was asked for."""
        if isinstance(self._listener, Path):
            return f"unix:{self._listener}"
        at = self._port.getHost()
        return write_address((at.host, at.port))

    def startService(self) -> None:
        """Listen.

        Raises CannotListenError if the address is taken, and ConfigError if what is at the path is no socket.
        """
        if self._inherited is not None:
            self._adopt(self._inherited)
        elif isinstance(self._listener, Path):
            _clear(self._listener, self._setting)
            self._port = _SocketPort(self._listener, self._site, self._reactor)
            self._port.startListening()
        else:
            host, port = self._listener
            self._port = self._reactor.listenTCP(port, self._site, BACKLOG, host)
        super().startService()

    def _adopt(self, descriptor: int) -> None:
        with socket.socket(fileno=descriptor) as passed:
            passed.setblocking(False)
            # Twisted works on a duplicate, and does not shut it down at the end: connections wait for who comes next.
            self._port = self._reactor.adoptStreamPort(passed.fileno(), passed.family, self._site)
        self._inherited = None
        if not self._is_configured():
            self._log.warn(
                "it listens on {address}, as the socket unit says; {setting} do not count",
                address=self.address,
                setting=self._setting,
            )

    def _is_configured(self) -> bool:
        at = self._port.getHost()
        return (
            not isinstance(self._listener, Path) and self._listener[1] in {at.port, 0} and self._listener[0] == at.host
        )

    def stopService(self) -> Deferred[None]:
        """Stop accepting, and finish what is in flight."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        await self._site.drain(self._drain_seconds)


class _SocketPort(unix.Port):
    """A Unix socket whose file is removed at the end, if it is still there; Twisted removes whatever is at the path."""

    def __init__(self, path: Path, site: BoundedSite, reactor: Any) -> None:
        super().__init__(os.fsencode(path), site, BACKLOG, SOCKET_MODE, reactor)
        self._path = path
        self._identity: tuple[int, int] | None = None

    def startListening(self) -> None:
        """Bind and listen."""
        super().startListening()
        self._identity = self._found()

    def connectionLost(self, reason: Failure) -> None:
        """Take the end of the listening."""
        if self._identity is not None and self._found() == self._identity:
            self._path.unlink()
        tcp.Port.connectionLost(self, reason)

    def _found(self) -> tuple[int, int] | None:
        try:
            status = self._path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _clear(path: Path, setting: str) -> None:
    """Remove the socket that a killed process left behind, and nothing else."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # there is none, or binding will say what the matter is
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{setting} is 'unix:{path}', but there is something that is no socket; expected is a path where there is"
            " none, or one that an earlier run left behind"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise CannotListenError(None, path, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
    path.unlink()
