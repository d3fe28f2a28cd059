"""A picture to draw on: boxes, lines and text that stays inside. By Pillow, which the app brings. Knows no offloading.

Sizes are pixels. Text is drawn in Pillow's own font, so that a picture looks alike on every machine; what that font
has no letter for (it knows Western European ones) is shown as a question mark.
"""

from __future__ import annotations

import functools

import torch
from PIL import Image, ImageDraw, ImageFont

Colour = str

GROUND, PANEL, LINE, TEXT, QUIET = "#1c1e22", "#282b31", "#3c4048", "#ececee", "#aab0ba"
DARK_TEXT = "#15171a"


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # before Pillow 10.1 it comes in one size
        return ImageFont.load_default()


class Canvas:
    """`width` by `height`, drawn from the top. Text boxes are kept, so that a test can look for clipped ones."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width, height), GROUND)
        self._draw = ImageDraw.Draw(self._image)
        self.texts: list[tuple[str, tuple[float, float, float, float]]] = []

    def box(self, x: float, y: float, width: float, height: float, fill: Colour | None, outline: str = "") -> None:
        """At least one pixel wide."""
        right, bottom = max(x, x + width - 1), max(y, y + height - 1)
        self._draw.rectangle((round(x), round(y), round(right), round(bottom)), fill=fill, outline=outline or None)

    def line(self, x: float, y: float, x2: float, y2: float, colour: Colour, width: int = 1) -> None:
        self._draw.line((x, y, x2, y2), fill=colour, width=width)

    def text(self, x: float, y: float, text: str, size: int = 14, colour: Colour = TEXT, room: float = 1e9) -> float:
        """Top left at (x, y), cut to `room` and to the picture. Returns its width."""
        text = fitted(text, size, min(room, self.width - x))
        box = self._draw.textbbox((x, y), text, font=_font(size))
        self._draw.text((x, y), text, fill=colour, font=_font(size))
        self.texts.append((text, box))
        return text_width(text, size)

    def text_right(self, right: float, y: float, text: str, size: int = 14, colour: Colour = TEXT) -> None:
        """Ends at `right`."""
        self.text(max(0.0, right - text_width(_known(text), size)), y, text, size, colour)

    def text_centred(self, x: float, y: float, text: str, size: int = 14, colour: Colour = TEXT) -> None:
        """Its middle at `x`, but inside the picture."""
        width = text_width(_known(text), size)
        self.text(min(max(0.0, x - width / 2), self.width - width), y, text, size, colour)

    def tensor(self) -> torch.Tensor:
        """As the app's IMAGE: float32, [1, height, width, 3], 0 to 1."""
        pixels = torch.frombuffer(bytearray(self._image.tobytes()), dtype=torch.uint8)
        return pixels.reshape(1, self.height, self.width, 3).float() / 255.0

    def save(self, path: str) -> None:
        self._image.save(path)


def _known(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")


def text_width(text: str, size: int) -> float:
    return float(_font(size).getlength(text))


def fitted(text: str, size: int, room: float) -> str:
    """`text`, cut in the middle if it needs more than `room` pixels: beginnings and ends of file names both matter."""
    text = _known(text)
    if text_width(text, size) <= room:
        return text
    kept = len(text)
    while kept > 1:
        kept -= 1
        cut = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        if text_width(cut, size) <= room:
            return cut
    return ""


def readable_on(colour: Colour) -> Colour:
    """Dark or light text, whichever can be read on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return DARK_TEXT if 0.3 * red + 0.6 * green + 0.1 * blue > 125 else TEXT
