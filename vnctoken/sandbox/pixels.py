"""Pictures as a VNC viewer gets them: the bytes of its pixel format, and only the parts that have changed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

if TYPE_CHECKING:
    from collections.abc import Iterator

Box = tuple[int, int, int, int]
"""A rectangle as Pillow has it: left, upper, right, lower; the last two just outside."""

_LAYOUT = struct.Struct(">BB??3H3B3x")
_BAND_HEIGHT = 25


@dataclass(frozen=True)
class PixelFormat:
    """A true-colour pixel format (RFC 6143, section 7.4); maxima and shifts are those of red, green and blue."""

    bits_per_pixel: int = 32
    depth: int = 24
    big_endian: bool = False
    maxima: tuple[int, int, int] = (255, 255, 255)
    shifts: tuple[int, int, int] = (16, 8, 0)

    @classmethod
    def from_bytes(cls, data: bytes) -> PixelFormat:
        """Read the 16 bytes of a PIXEL_FORMAT; raise ValueError for colour maps and other than 8, 16 or 32 bits."""
        bits_per_pixel, depth, big_endian, true_colour, *numbers = _LAYOUT.unpack(data)
        if not true_colour or bits_per_pixel not in (8, 16, 32):
            raise ValueError("a true-colour format of 8, 16 or 32 bits per pixel expected")
        red, green, blue, *shifts = numbers
        return cls(bits_per_pixel, depth, big_endian, (red, green, blue), (shifts[0], shifts[1], shifts[2]))

    def __bytes__(self) -> bytes:
        return _LAYOUT.pack(self.bits_per_pixel, self.depth, self.big_endian, True, *self.maxima, *self.shifts)

    def encode(self, image: Image.Image) -> bytes:
        """Return the pixels of an RGB image, row by row. Bits shifted out of the pixel are lost."""
        bands = [band.tobytes() for band in image.split()]
        pixels = bytearray(len(self._tables) * len(bands[0]))
        for position, tables in enumerate(self._tables):
            shares = (int.from_bytes(bands[band].translate(table), "little") for band, table in tables)
            pixels[position :: len(self._tables)] = reduce(or_, shares, 0).to_bytes(len(bands[0]), "little")
        return bytes(pixels)

    @cached_property
    def _tables(self) -> list[list[tuple[int, bytes]]]:
        """For each byte of a pixel: the bands that have a share in it, and their shares by the value in the band."""
        size = self.bits_per_pixel // 8
        positions: list[list[tuple[int, bytes]]] = [[] for _ in range(size)]
        for band, (maximum, shift) in enumerate(zip(self.maxima, self.shifts, strict=True)):
            pixels = [((value * maximum + 127) // 255 << shift) % (1 << self.bits_per_pixel) for value in range(256)]
            encoded = b"".join(pixel.to_bytes(size, "big" if self.big_endian else "little") for pixel in pixels)
            for position, tables in enumerate(positions):
                table = encoded[position::size]
                if any(table):
                    tables.append((band, table))
        return positions


class Copy:
    """What one viewer has got of a picture of this size: at first nothing."""

    def __init__(self, size: tuple[int, int]) -> None:
        # Opaque where the viewer has the picture.
        self._image = Image.new("RGBA", size)

    def forget(self, box: Box) -> None:
        """Assume that the viewer has nothing in the box."""
        self._image.paste((0, 0, 0, 0), box)

    def changes(self, image: Image.Image, box: Box) -> list[Box]:
        """Bring the copy up to date inside the box; return where it had to be changed for that."""
        left, upper = box[:2]
        newer = image.crop(box).convert("RGBA")
        boxes = [
            (left + change[0], upper + change[1], left + change[2], upper + change[3])
            for change in _boxes(ImageChops.difference(self._image.crop(box), newer))
        ]
        self._image.paste(newer, box)
        return boxes


def _boxes(difference: Image.Image) -> Iterator[Box]:
    width, height = difference.size
    for top in range(0, height, _BAND_HEIGHT):
        band = difference.crop((0, top, width, min(top + _BAND_HEIGHT, height)))
        box = band.getbbox(alpha_only=False)
        if box is not None:
            yield box[0], top + box[1], box[2], top + box[3]
