"""An image with boxes, lines and clipped text, drawn by Pillow, which the app depends on. Knows no offloading.

Sizes are pixels. Text is drawn in Pillow's built-in font, so that the image is the same on every machine; characters
outside Latin-1 are drawn as question marks.
"""

from __future__ import annotations

import functools

import torch
from PIL import Image, ImageDraw, ImageFont

GROUND, PANEL, LINE, TEXT, QUIET = "#1c1e22", "#282b31", "#3c4048", "#ececee", "#aab0ba"
DARK_TEXT = "#15171a"


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # before Pillow 10.1 the font has a fixed size
        return ImageFont.load_default()


class Canvas:
    """`width` by `height` pixels, origin at the top left. `texts` keeps the text boxes for tests of clipping."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width, height), GROUND)
        self._draw = ImageDraw.Draw(self._image)
        self.texts: list[tuple[str, tuple[float, float, float, float]]] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str | None, outline: str = "") -> None:
        """At least one pixel wide and high. `fill` None: outline only."""
        right, bottom = max(x, x + width - 1), max(y, y + height - 1)
        self._draw.rectangle((round(x), round(y), round(right), round(bottom)), fill=fill, outline=outline or None)

    def line(self, x: float, y: float, x2: float, y2: float, colour: str, width: int = 1) -> None:
        self._draw.line((x, y, x2, y2), fill=colour, width=width)

    def text(
        self, x: float, y: float, text: str, size: int = 14, colour: str = TEXT, room: float = 1e9, align: float = 0
    ) -> float:
        """Top left at (x, y), cut to `room` pixels and to the image; `align` 0.5: centred at x, 1: right-aligned, both
        shifted to stay inside the image. Returns the width drawn."""
        if align:
            width = text_width(_known(text), size)
            x = max(0.0, min(x - align * width, self.width - width))
        text = fitted(text, size, min(room, self.width - x))
        box = self._draw.textbbox((x, y), text, font=_font(size))
        self._draw.text((x, y), text, fill=colour, font=_font(size))
        self.texts.append((text, box))
        return text_width(text, size)

    def tensor(self) -> torch.Tensor:
        """As the app's IMAGE: float32, [1, height, width, 3], 0 to 1."""
        pixels = torch.frombuffer(bytearray(self._image.tobytes()), dtype=torch.uint8)
        return pixels.reshape(1, self.height, self.width, 3).float() / 255.0


def _known(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")


def text_width(text: str, size: int) -> float:
    return float(_font(size).getlength(text))


def fitted(text: str, size: int, room: float) -> str:
    """`text`, cut in the middle if wider than `room` pixels: beginnings and ends of file names both matter."""
    text = _known(text)
    if text_width(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        cut = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        if text_width(cut, size) <= room:
            return cut
    return ""


def readable_on(colour: str) -> str:
    """The text colour, dark or light, with enough contrast on `colour` (#rrggbb)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return DARK_TEXT if 0.3 * red + 0.6 * green + 0.1 * blue > 125 else TEXT
