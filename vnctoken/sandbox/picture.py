"""What the screen of a VM looks like: its name in its own colour, the time, a line that was typed, the pointer."""

from __future__ import annotations

import colorsys
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from vnctoken.sandbox.lettering import Letters

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.sandbox.lettering import Colour
    from vnctoken.sandbox.pixels import Box

SIZE = (640, 400)
"""Width and height in pixels."""

IDENTITY: Box = (0, 0, 640, 112)
"""The part that shows the VM's name, id and owner, and nothing else."""

TYPED_LINE: Box = (32, 304, 608, 342)
"""The part that shows the typed line."""

_TERMINAL: Box = (24, 262, 616, 346)
_DIAL: Box = (484, 122, 616, 254)
_LEFT, _RIGHT = 24, 616
_BUTTONS = 5
_FINE = 4
"""How many times finer than pixels round things are drawn."""

_GROUND, _WELL, _RIM = (20, 24, 32), (10, 12, 17), (58, 66, 82)
_WHITE, _GREY = (244, 246, 250), (138, 148, 166)
_NAMES = [Letters(size, _WHITE, bold=True) for size in range(50, 14, -2)]
_TIME, _DATE = Letters(80, _WHITE), Letters(24, _GREY)
_TYPED, _LINE_BEFORE, _STATUS = Letters(26, _WHITE), Letters(20, _GREY), Letters(18, _GREY)


@dataclass(frozen=True)
class Scene:
    """What there is to see besides the VM itself; `now` is in seconds since the epoch, bit 0 of `buttons` the first."""

    now: float = 0
    typed: str = ""
    line_before: str = ""
    pointer: tuple[int, int] | None = None
    buttons: int = 0


class Painter:
    """Paints the screen of one VM, in RGB."""

    def __init__(self, name: str, vm_id: int, owner: str) -> None:
        self._colour, self._tint = _colours(vm_id)
        self._backdrop = self._paint_backdrop(name, vm_id, owner)

    def paint(self, scene: Scene) -> Image.Image:
        """Return a new picture."""
        image = self._backdrop.copy()
        draw = ImageDraw.Draw(image)
        clock = time.gmtime(scene.now)
        _TIME.write(draw, _LEFT, 196, time.strftime("%H:%M:%S", clock))
        _DATE.write(draw, _LEFT + 4, 236, time.strftime("%Y-%m-%d  UTC", clock))
        for turns, length, thickness, colour in (
            (scene.now / 43200, 0.28, 0.030, _WHITE),
            (scene.now / 3600, 0.38, 0.024, _WHITE),
            (scene.now / 60, 0.42, 0.012, self._tint),
        ):
            _paint_finely(image, _DIAL, colour, _hand(turns, length, thickness))
        self._write_lines(draw, scene)
        self._show_pointer(draw, scene)
        image.paste(self._backdrop.crop(IDENTITY), IDENTITY)
        return image

    def _paint_backdrop(self, name: str, vm_id: int, owner: str) -> Image.Image:
        image = Image.new("RGB", SIZE, _GROUND)
        draw = ImageDraw.Draw(image)
        draw.rectangle(_inside(IDENTITY), self._colour)
        Letters(30, self._tint, bold=True).write(draw, _LEFT, 40, f"VM {vm_id}")
        letters = Letters(24, self._tint)
        letters.write(draw, _RIGHT - letters.width(owner), 40, owner)
        fitting = (letters for letters in _NAMES if letters.width(name) <= _RIGHT - _LEFT)
        next(fitting, _NAMES[-1]).write(draw, _LEFT, 92, name)
        _paint_finely(image, _DIAL, _RIM, _disc(0.5))
        _paint_finely(image, _DIAL, _WELL, _disc(0.48))
        for hour in range(12):
            _paint_finely(image, _DIAL, _GREY, _disc(0.012, hour / 12, 0.43))
        draw.rounded_rectangle(_inside(_TERMINAL), 8, _WELL, _RIM)
        _STATUS.write(draw, 280, 380, "buttons")
        return image

    def _write_lines(self, draw: ImageDraw.ImageDraw, scene: Scene) -> None:
        left, upper, right, lower = TYPED_LINE
        room = right - left - 60
        _LINE_BEFORE.write(draw, left + 8, upper - 8, _end_of(scene.line_before, _LINE_BEFORE, room))
        Letters(_TYPED.size, self._tint).write(draw, left + 8, lower - 10, ">")
        typed = _end_of(scene.typed, _TYPED, room)
        _TYPED.write(draw, left + 32, lower - 10, typed)
        caret = left + 34 + _TYPED.width(typed)
        draw.rectangle((caret, upper + 4, caret + 11, lower - 6), self._tint)

    def _show_pointer(self, draw: ImageDraw.ImageDraw, scene: Scene) -> None:
        for button in range(_BUTTONS):
            pressed = scene.buttons >> button & 1
            left = 356 + 32 * button
            draw.rounded_rectangle((left, 362, left + 24, 386), 5, self._tint if pressed else _WELL, _RIM)
            Letters(16, _WELL if pressed else _GREY).write(draw, left + 8, 380, str(button + 1))
        if scene.pointer is None:
            _STATUS.write(draw, _LEFT + 4, 380, "pointer")
            return
        x, y = scene.pointer
        _STATUS.write(draw, _LEFT + 4, 380, f"pointer  {x}, {y}")
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=_WELL, width=4)
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline=_WHITE, width=2)
        draw.rectangle((x - 1, y - 1, x + 1, y + 1), _WHITE, _WELL)


def _colours(vm_id: int) -> tuple[Colour, Colour]:
    """Return a strong and a light shade of the VM's own colour."""
    # Steps of the golden section keep the hues of any row of ids as far apart as can be.
    hue = (0.58 + vm_id * (math.sqrt(5) - 1) / 2) % 1
    return _colour(hue, 0.34), _colour(hue, 0.82)


def _colour(hue: float, lightness: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.55))
    return red, green, blue


def _end_of(text: str, letters: Letters, room: int) -> str:
    """Return as much of the end of a line as there is room for, in pixels."""
    return next((text[start:] for start in range(len(text)) if letters.width(text[start:]) <= room), "")


def _inside(box: Box) -> Box:
    """Return a box as ImageDraw has it: the last two are the last pixels inside."""
    return box[0], box[1], box[2] - 1, box[3] - 1


def _paint_finely(
    image: Image.Image, box: Box, colour: Colour, draw: Callable[[ImageDraw.ImageDraw, int], object]
) -> None:
    """Paint what `draw` draws in 255 on a finer square, whose side it is told."""
    side = (box[2] - box[0]) * _FINE
    mask = Image.new("L", (side, side))
    draw(ImageDraw.Draw(mask), side)
    image.paste(colour, box, mask.reduce(_FINE))


def _disc(radius: float, turns: float = 0, distance: float = 0) -> Callable[[ImageDraw.ImageDraw, int], object]:
    """Return what draws a disc as seen from the dial's centre; measures are shares of the dial's width."""

    def draw(fine: ImageDraw.ImageDraw, side: int) -> None:
        x, y = side / 2 + _right(turns) * distance * side, side / 2 + _down(turns) * distance * side
        fine.ellipse((x - radius * side, y - radius * side, x + radius * side, y + radius * side), 255)

    return draw


def _hand(turns: float, length: float, thickness: float) -> Callable[[ImageDraw.ImageDraw, int], object]:
    """Return what draws a hand of the dial; measures are shares of the dial's width."""

    def draw(fine: ImageDraw.ImageDraw, side: int) -> None:
        along, tail = length * side, length * side / 5
        x, y = _right(turns), _down(turns)
        ends = [(side / 2 - x * tail, side / 2 - y * tail), (side / 2 + x * along, side / 2 + y * along)]
        fine.line(ends, 255, round(thickness * side))
        _disc(0.03)(fine, side)

    return draw


def _right(turns: float) -> float:
    return math.sin(2 * math.pi * turns)


def _down(turns: float) -> float:
    return -math.cos(2 * math.pi * turns)
