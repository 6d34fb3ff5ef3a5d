"""The server's side of RFB 3.8, the protocol of VNC (RFC 6143): one `Screen`, in raw encoding."""

from __future__ import annotations

import hmac
import secrets
import struct
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from twisted.internet.protocol import Factory, Protocol

from vnctoken.sandbox.deadline import Deadline
from vnctoken.sandbox.pixels import PixelFormat
from vnctoken.sandbox.updates import Updates

if TYPE_CHECKING:
    from collections.abc import Generator

    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from vnctoken.sandbox.abyss import Clock
    from vnctoken.sandbox.screen import Screen

VERSION = b"RFB 003.008\n"

MESSAGE_SECONDS = 10
"""How long a viewer may take for its part of the handshake, and for each message once it has begun."""

PASSWORD_SECONDS = 120
"""How long it may take to answer the challenge: somebody may have to type the password first."""

MAX_CUT_TEXT = 1024 * 1024
"""How many bytes of its clipboard a viewer may send."""

_NEARLY_VERSION = b"RFB 003.007\n"
_NONE, _VNC_AUTHENTICATION = 1, 2
_OK, _FAILED = 0, 1
_SET_PIXEL_FORMAT, _SET_ENCODINGS, _UPDATE_REQUEST, _KEY_EVENT, _POINTER_EVENT, _CUT_TEXT = 0, 2, 3, 4, 5, 6


def authentication_response(password: str, challenge: bytes) -> bytes:
    """Return what a viewer that knows the password answers to a challenge (RFC 6143, section 7.2.2).

    Only the first eight characters of the password count; those outside Latin-1 count as question marks.
    """
    characters = password[:8].encode("latin-1", "replace").ljust(8, b"\0")
    # VNC's DES has the bits of each byte of the key in the opposite order. Three times the same key make triple DES
    # single again.
    key = bytes(int(f"{character:08b}"[::-1], 2) for character in characters)
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()  # noqa: S305 - what the protocol asks for
    return encryptor.update(challenge) + encryptor.finalize()


class _RefusedError(Exception):
    """Raised if the conversation is over; `farewell` is sent before the connection ends."""

    def __init__(self, farewell: bytes = b"") -> None:
        super().__init__()
        self.farewell = farewell


class RfbServer(Protocol):
    """One viewer's connection to a screen; `password` is None where anybody may look."""

    # Twisted's own type says that there may be none; here it is a TCP transport, or a test's.
    transport: Any

    def __init__(self, screen: Screen, password: str | None, clock: Clock) -> None:
        self._screen = screen
        self._password = password
        self._clock = clock
        self._deadline = Deadline(clock, self._give_up)
        self._updates: Updates | None = None
        self._conversation = self._converse()
        self._received = bytearray()
        self._needed = 0
        self._over = False

    def connectionMade(self) -> None:
        """Greet the viewer."""
        self._needed = next(self._conversation)

    def dataReceived(self, data: bytes) -> None:
        """Go on with the conversation as far as what has arrived allows."""
        if self._over:
            return
        self._received += data
        try:
            while len(self._received) >= self._needed:
                message = bytes(self._received[: self._needed])
                del self._received[: self._needed]
                self._needed = self._conversation.send(message)
        except _RefusedError as refusal:
            self._over = True
            if refusal.farewell:
                self.transport.write(refusal.farewell)
                self.transport.loseConnection()
            else:
                self.transport.abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 - any reason will do
        """Stop all that was going on for this viewer."""
        self._over = True
        self._deadline.lift()
        if self._updates is not None:
            self._updates.stop()

    def _give_up(self) -> None:
        self.transport.abortConnection()

    def _converse(self) -> Generator[int, bytes, None]:
        """Say what a server says; each `yield` asks for a number of bytes from the viewer and returns them.

        Raises _RefusedError when there is no more to say.
        """
        yield from self._shake_hands()
        self._updates = updates = Updates(self._screen, self.transport, self._clock)
        while True:
            self._deadline.lift()
            kind = (yield 1)[0]
            self._deadline.set(MESSAGE_SECONDS)
            if kind == _SET_PIXEL_FORMAT:
                updates.pixel_format = _pixel_format((yield 19)[3:])
            elif kind == _SET_ENCODINGS:
                # Every viewer knows the raw encoding, and there is no other here.
                (count,) = struct.unpack(">xH", (yield 3))
                yield 4 * count
            elif kind == _UPDATE_REQUEST:
                incremental, *rectangle = struct.unpack(">?4H", (yield 9))
                updates.request(*rectangle, incremental=incremental)
            elif kind == _KEY_EVENT:
                pressed, keysym = struct.unpack(">?2xI", (yield 7))
                if pressed:
                    self._screen.key(keysym)
            elif kind == _POINTER_EVENT:
                buttons, x, y = struct.unpack(">BHH", (yield 5))
                self._screen.point(x, y, buttons)
            elif kind == _CUT_TEXT:
                (length,) = struct.unpack(">3xI", (yield 7))
                if length > MAX_CUT_TEXT:
                    raise _RefusedError
                yield length
            else:
                raise _RefusedError

    def _shake_hands(self) -> Generator[int, bytes, None]:
        self._deadline.set(MESSAGE_SECONDS)
        self.transport.write(VERSION)
        version = yield len(VERSION)
        if version != VERSION:
            raise _RefusedError(_wrong_version(version))
        security = _NONE if self._password is None else _VNC_AUTHENTICATION
        self.transport.write(bytes([1, security]))
        chosen = (yield 1)[0]
        if chosen != security:
            raise _RefusedError(_failure(f"Security type {chosen} was not offered, only {security}."))
        if self._password is not None:
            challenge = secrets.token_bytes(16)
            self.transport.write(challenge)
            self._deadline.set(PASSWORD_SECONDS)
            response = yield len(challenge)
            self._deadline.set(MESSAGE_SECONDS)
            if not hmac.compare_digest(response, authentication_response(self._password, challenge)):
                raise _RefusedError(_failure("Authentication failed: this is not the password of the screen."))
        self.transport.write(struct.pack(">I", _OK))
        # Whether the viewer shares the screen with others; here all do.
        yield 1
        size = struct.pack(">HH", *self._screen.size)
        self.transport.write(size + bytes(PixelFormat()) + _counted(self._screen.title))


def _pixel_format(data: bytes) -> PixelFormat:
    try:
        return PixelFormat.from_bytes(data)
    except ValueError:
        raise _RefusedError from None


def _counted(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">I", len(encoded)) + encoded


def _failure(reason: str) -> bytes:
    return struct.pack(">I", _FAILED) + _counted(reason)


def _wrong_version(version: bytes) -> bytes:
    """Return a refusal as viewers of that version read it; all but 3.7 and 3.8 count as 3.3."""
    if not version.startswith(b"RFB "):
        return b""
    no_security_type = bytes(1 if version == _NEARLY_VERSION else 4)
    return no_security_type + _counted("RFB 3.8 is the only version that this screen speaks.")


class RfbFactory(Factory):
    """The server of one screen."""

    noisy = False

    def __init__(self, screen: Screen, password: str | None, clock: Clock) -> None:
        self._screen = screen
        self._password = password
        self._clock = clock

    def buildProtocol(self, addr: IAddress | None) -> RfbServer:  # noqa: ARG002 - everybody is served
        """Return the protocol of a new connection."""
        return RfbServer(self._screen, self._password, self._clock)
