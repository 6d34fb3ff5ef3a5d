"""The screen of a VM that is none: it has a picture, takes keys and a pointer, and tells when to look again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vnctoken.sandbox.picture import IDENTITY, SIZE, TYPED_LINE, Painter, Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from vnctoken.sandbox.abyss import Clock
    from vnctoken.sandbox.pixels import Box

FRAME_SECONDS = 0.2
"""How long a picture is shown to those who wait for the next."""

ECHO_SECONDS = 0.02
"""How long after a key or the pointer the next picture comes at the latest."""

MAX_TYPED = 80
"""How many characters the typed line keeps; the oldest go first."""

# Keysyms, as in X11's keysymdef.h.
BACKSPACE, RETURN, KEYPAD_ENTER = 0xFF08, 0xFF0D, 0xFF8D
_KEYPAD, _KEYPAD_OFFSET = range(0xFFAA, 0xFFBA), 0xFF80
_LATIN_1, _UNICODE, _UNICODE_OFFSET = range(0x20, 0x100), range(0x01000000, 0x01110000), 0x01000000


class Screen:
    """The screen of one VM, for any number of viewers, who all see the same.

    Nothing is drawn unless somebody looks at `image`, and no timer runs unless somebody waits for the next one.
    """

    size: ClassVar[tuple[int, int]] = SIZE
    """Width and height in pixels."""

    identity: ClassVar[Box] = IDENTITY
    """The part of `image` that depends on the VM's name, id and owner alone; nothing is ever drawn over it."""

    typed_line: ClassVar[Box] = TYPED_LINE
    """The part that depends on the VM's id and on `typed` alone, if the pointer is at least 10 pixels away."""

    def __init__(self, name: str, vm_id: int, *, owner: str, clock: Clock) -> None:
        self.title = f"VM {vm_id}: {name}"
        self._vm = name, vm_id, owner
        self._clock = clock
        self._scene = Scene()
        self._painter: Painter | None = None
        self._painted: tuple[Scene, Image.Image] | None = None
        self._waiting: dict[Callable[[], object], None] = {}
        self._next_frame: Any = None

    @property
    def typed(self) -> str:
        """What was typed since the last Return."""
        return self._scene.typed

    @property
    def image(self) -> Image.Image:
        """The picture at this moment, in RGB; to be looked at only. It stays as it is, the next moment has its own."""
        frame = math.floor(self._clock.seconds() / FRAME_SECONDS)
        scene = replace(self._scene, now=frame * FRAME_SECONDS)
        if self._painter is None:
            self._painter = Painter(*self._vm)
        if self._painted is None or self._painted[0] != scene:
            self._painted = scene, self._painter.paint(scene)
        return self._painted[1]

    def wait(self, callback: Callable[[], object]) -> None:
        """Call back, once, when it is time to look at the picture again."""
        self._waiting[callback] = None
        if self._next_frame is None:
            self._next_frame = self._clock.callLater(FRAME_SECONDS, self._show)

    def stop_waiting(self, callback: Callable[[], object]) -> None:
        """Do not call back, if that was asked for."""
        self._waiting.pop(callback, None)
        if not self._waiting and self._next_frame is not None:
            self._next_frame.cancel()
            self._next_frame = None

    def key(self, keysym: int) -> None:
        """Take notice that a key was pressed; those without a character do nothing, but for Backspace and Return."""
        scene = self._scene
        if keysym == BACKSPACE:
            self._change(replace(scene, typed=scene.typed[:-1]))
        elif keysym in (RETURN, KEYPAD_ENTER):
            self._change(replace(scene, typed="", line_before=scene.typed))
        else:
            self._change(replace(scene, typed=(scene.typed + _character(keysym))[-MAX_TYPED:]))

    def point(self, x: int, y: int, buttons: int) -> None:
        """Take notice of where the pointer is, and which buttons are down: bit 0 is the first."""
        width, height = self.size
        self._change(replace(self._scene, pointer=(min(x, width - 1), min(y, height - 1)), buttons=buttons))

    def _change(self, scene: Scene) -> None:
        self._scene = scene
        if self._next_frame is not None and self._next_frame.getTime() - self._clock.seconds() > ECHO_SECONDS:
            self._next_frame.reset(ECHO_SECONDS)

    def _show(self) -> None:
        self._next_frame = None
        waiting, self._waiting = self._waiting, {}
        for callback in waiting:
            callback()


def _character(keysym: int) -> str:
    """Return what a key types, "" if that is nothing visible."""
    if keysym in _LATIN_1:
        character = chr(keysym)
    elif keysym in _UNICODE:
        character = chr(keysym - _UNICODE_OFFSET)
    elif keysym in _KEYPAD:
        character = chr(keysym - _KEYPAD_OFFSET)
    else:
        return ""
    return character if character.isprintable() else ""
