"""What one VNC viewer is sent of a screen: an update when it has asked for one, and when it has taken the last."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from vnctoken.sandbox.deadline import Deadline
from vnctoken.sandbox.pixels import Copy, PixelFormat

if TYPE_CHECKING:
    from vnctoken.sandbox.abyss import Clock
    from vnctoken.sandbox.pixels import Box
    from vnctoken.sandbox.screen import Screen

TAKING_SECONDS = 30
"""How long a viewer may take to receive what was sent before it is given up."""

_FRAMEBUFFER_UPDATE, _RAW = 0, 0


@implementer(IPushProducer)
class Updates:
    """The updates of a screen for one viewer, in `pixel_format`, written to its transport.

    An update is written only while the transport has nothing left of the last one, so that a viewer that stops
    reading makes nothing grow.
    """

    def __init__(self, screen: Screen, transport: Any, clock: Clock) -> None:
        self.pixel_format = PixelFormat()
        self._screen = screen
        self._transport = transport
        self._taking = Deadline(clock, transport.abortConnection)
        self._copy = Copy(screen.size)
        self._requested: Box | None = None
        self._congested = False
        transport.registerProducer(self, True)

    def request(self, x: int, y: int, width: int, height: int, *, incremental: bool) -> None:
        """Send the rectangle at the next opportunity; only its changes, when there are any, if that is enough."""
        columns, rows = self._screen.size
        box = x, y, min(x + width, columns), min(y + height, rows)
        if box[0] >= box[2] or box[1] >= box[3]:
            return
        if not incremental:
            self._copy.forget(box)
        self._requested = _around(self._requested or box, box)
        self._update()

    def stop(self) -> None:
        """Send no more."""
        self._requested = None
        self._screen.stop_waiting(self._update)
        self._taking.lift()

    def pauseProducing(self) -> None:
        """Wait until the viewer has taken what was sent."""
        self._congested = True
        self._taking.set(TAKING_SECONDS)

    def resumeProducing(self) -> None:
        """Go on."""
        self._congested = False
        self._taking.lift()
        self._update()

    def stopProducing(self) -> None:
        """Send no more: the connection is ending."""
        self.stop()

    def _update(self) -> None:
        if self._requested is None or self._congested:
            return
        image = self._screen.image
        boxes = self._copy.changes(image, self._requested)
        if not boxes:
            self._screen.wait(self._update)
            return
        self._requested = None
        message = [struct.pack(">BxH", _FRAMEBUFFER_UPDATE, len(boxes))]
        for box in boxes:
            left, upper, right, lower = box
            message.append(struct.pack(">4Hi", left, upper, right - left, lower - upper, _RAW))
            message.append(self.pixel_format.encode(image.crop(box)))
        self._transport.write(b"".join(message))


def _around(one: Box, other: Box) -> Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])
