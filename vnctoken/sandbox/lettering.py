"""Text in pictures, in the one font that comes with Pillow.

That font knows little more than ASCII. Any other character is shown as a box with its code point in hexadecimal, so
that no two look alike and none fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from PIL import ImageDraw

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""

_BOX_HEIGHT, _DIGIT_SIZE, _DIGIT_WIDTH, _GAP = 0.72, 0.36, 0.24, 0.06
"""Measures of a box, in sizes of its letters."""


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Letters:
    """How a line of text looks; `size` is in pixels."""

    size: int
    colour: Colour
    bold: bool = False

    def width(self, text: str) -> int:
        """Return how wide a line of text is, in pixels."""
        return round(sum(self._width(part, known=known) for known, part in _parts(text)))

    def write(self, draw: ImageDraw.ImageDraw, left: float, baseline: float, text: str) -> None:
        """Write a line of text."""
        for known, part in _parts(text):
            if known:
                stroke = self.size // 30 if self.bold else 0
                where = left, baseline
                draw.text(where, part, self.colour, _font(self.size), anchor="ls", stroke_width=stroke)
            else:
                self._draw_box(draw, left, baseline, part)
            left += self._width(part, known=known)

    def _width(self, part: str, *, known: bool) -> float:
        if known:
            return _font(self.size).getlength(part)
        return (_columns(part) * _DIGIT_WIDTH + 3 * _GAP) * self.size

    def _draw_box(self, draw: ImageDraw.ImageDraw, left: float, baseline: float, character: str) -> None:
        gap, top, right = (
            _GAP * self.size,
            baseline - _BOX_HEIGHT * self.size,
            left + self._width(character, known=False),
        )
        draw.rectangle((left + gap / 2, top, right - gap / 2, baseline), outline=self.colour)
        columns, font = _columns(character), _font(round(_DIGIT_SIZE * self.size))
        digits = f"{ord(character):0{2 * columns}X}"
        middle = (left + right) / 2
        draw.text((middle, (top + baseline - gap) / 2), digits[:columns], self.colour, font, anchor="ms")
        draw.text((middle, baseline - gap), digits[columns:], self.colour, font, anchor="ms")


def _parts(text: str) -> list[tuple[bool, str]]:
    """Split a text into what the font knows, as long as can be, and single characters that it does not."""
    runs = [(known, "".join(run)) for known, run in groupby(text, lambda character: " " <= character <= "~")]
    return [(known, part) for known, run in runs for part in ([run] if known else run)]


def _columns(character: str) -> int:
    """Return how many digits stand in each of a box's two rows."""
    return 2 if ord(character) <= 0xFFFF else 3  # noqa: PLR2004 - what four digits can say
