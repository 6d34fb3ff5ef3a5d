"""oned's events: it publishes over ZeroMQ every change of a VM's state, to whoever listens.

They come without a login and prove nothing, so all that may follow from one is that a token dies. What comes while
nobody listens is lost.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from vnctoken.errors import ConfigError, OnedError
from vnctoken.safexml import parse
from vnctoken.vm import VirtualMachine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.python.failure import Failure

TOPIC = b"EVENT STATE VM/"

MAX_FRAME_BYTES = 2**20
"""How long a part of an event may be."""

RENEWAL_SECONDS = 60.0
"""After how long a silence another connection is made."""

RECONNECT_MILLISECONDS, RECONNECT_MAX_MILLISECONDS = 500, 5000
"""How long ZeroMQ waits before it tries again to connect: at first, and at most."""

_MAX_ID_DIGITS = 10


@implementer(IReadDescriptor)
class Events:
    """Calls `on_vm` with the id and the VM of every event from an endpoint such as "tcp://localhost:2101".

    One event at a time: the next is taken when `on_vm` is done. Nobody need publish there, now or ever. The reactor
    must provide IReactorFDSet and IReactorTime. Raises ConfigError if ZeroMQ is not installed.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: str,
        on_vm: Callable[[int, VirtualMachine], Awaitable[None]],
        reactor: Any,
        renewal: float = RENEWAL_SECONDS,
    ) -> None:
        try:
            import zmq  # noqa: PLC0415 (an extra)
        except ImportError:
            raise ConfigError(
                f":subscriber_endpoint: is {endpoint!r}, and oned's events need pyzmq: install vnctoken[events]"
            ) from None
        self._zmq = zmq
        self._endpoint = endpoint
        self._on_vm = on_vm
        self._reactor = reactor
        self._renewal = renewal
        self._context: Any = None
        self._socket: Any = None
        self._listening: Deferred[None] | None = None
        self._readable: Deferred[None] | None = None
        self._complained = False

    def start(self) -> None:
        """Listen from now on. Raises ConfigError if the endpoint is none for ZeroMQ."""
        self._context = self._zmq.Context()
        try:
            self._connect()
        except self._zmq.ZMQError as error:
            self._close()
            raise ConfigError(
                f":subscriber_endpoint: is {self._endpoint!r}, but one such as 'tcp://localhost:2101' is expected:"
                f" {error.strerror}"
            ) from None
        self._listening = Deferred.fromCoroutine(self._listen())
        self._listening.addErrback(self._ended)

    async def stop(self) -> None:
        """Listen no more, and give up what `on_vm` is doing."""
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        self._close()

    def _connect(self) -> None:
        self._socket = socket = self._context.socket(self._zmq.SUB)
        socket.linger = 0
        socket.maxmsgsize = MAX_FRAME_BYTES
        socket.reconnect_ivl = RECONNECT_MILLISECONDS
        socket.reconnect_ivl_max = RECONNECT_MAX_MILLISECONDS
        socket.subscribe(TOPIC)
        socket.connect(self._endpoint)

    def _close(self) -> None:
        if self._context is not None:
            self._socket.close()
            # Waits for ZeroMQ's thread, which has nothing left to do: less than a millisecond.
            self._context.term()
            self._context = self._socket = None

    def _ended(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("oned's events are no longer listened to", failure)

    async def _listen(self) -> None:
        while True:
            try:
                frames = self._socket.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                await self._more_or_another_connection()
                continue
            await self._handle(frames)
            # However much is published, everybody else has his turn.
            await deferLater(self._reactor, 0)

    async def _more_or_another_connection(self) -> None:
        # ZeroMQ connects again by itself, but never after an error in its protocol: a part that is too long, or
        # somebody else at oned's port while oned is down. Nor does it notice a front-end that was switched off.
        try:
            await self._more().addTimeout(self._renewal, self._reactor)
        except DeferredTimeoutError:
            self._socket.close()
            self._connect()

    def _more(self) -> Deferred[None]:
        """Return what fires when the socket is worth another look.

        ZeroMQ's file descriptor is readable once for any number of events, and until the socket is used again. So it is
        watched only when the socket was found empty.
        """
        self._readable = Deferred(lambda _: self._reactor.removeReader(self))
        self._reactor.addReader(self)
        return self._readable

    async def _handle(self, frames: list[bytes]) -> None:
        try:
            vm_id, vm = read_event(frames)
        except (ValueError, OnedError):
            if not self._complained:
                self._complained = True
                self._log.warn(
                    "{endpoint} publishes what is no event of oned's; this is said once, and all such are ignored",
                    endpoint=self._endpoint,
                )
            return
        try:
            await self._on_vm(vm_id, vm)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 (the next event may be handled better)
            self._log.failure("an event of VM {vm_id} could not be handled", vm_id=vm_id)

    def fileno(self) -> int:
        """Return ZeroMQ's file descriptor, -1 once it is closed."""
        return -1 if self._socket is None else int(self._socket.fd)

    def doRead(self) -> None:
        """Look at the socket again."""
        self._reactor.removeReader(self)
        readable, self._readable = self._readable, None
        if readable is not None:
            readable.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor ends, and whoever has called `start` will call `stop`."""

    def logPrefix(self) -> str:
        """Return what this is called in Twisted's log."""
        return "events"


def read_event(frames: list[bytes]) -> tuple[int, VirtualMachine]:
    """Return the id and the VM in an event: its name, and a HOOK_MESSAGE in XML as base64.

    Raises ValueError or OnedError if it is none.
    """
    _, message = frames
    element = next(parse(base64.b64decode(message)).iterchildren("VM"), None)
    vm_id = "" if element is None else element.findtext("ID", "")
    if element is None or not (vm_id.isascii() and vm_id.isdigit() and len(vm_id) <= _MAX_ID_DIGITS):
        raise ValueError("the message is about no VM")
    return int(vm_id), VirtualMachine.from_element(element)
