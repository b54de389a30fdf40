"""From an encoded image to the pixels that a network is given.

Needs NumPy and Pillow alone: bundles carry this file, and worker processes run it without the rest of potstill.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

BACKGROUND = "white"
"""What shows through where an image is transparent."""


def decoded(file: Path | str | BytesIO, resize: int, size: int) -> NDArray[np.uint8]:
    """RGB pixels (3, size, size): the middle of the image, turned as its EXIF data says.

    The image's shorter side is brought to `resize` pixels, bilinearly and antialiased, and the square of `size` pixels
    in the middle is kept. Of several frames the first is taken. Raises whatever Pillow does for what is no whole image.
    """
    with Image.open(file) as image:
        # Large JPEGs are decoded at a half, a quarter or an eighth, where that is still twice the size asked for.
        image.draft(None, (2 * resize, 2 * resize))
        rgb = _rgb(ImageOps.exif_transpose(image))
    part = min(rgb.size) * size / resize
    left, top = ((length - part) / 2 for length in rgb.size)
    middle = rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + part, top + part))
    return np.ascontiguousarray(np.asarray(middle).transpose(2, 0, 1))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("holds fractions, whose range is not told; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return _eight_bits(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, BACKGROUND), opaque).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any]) -> Image.Image:
    """The upper eight of sixteen bits, as Pillow itself reads 16-bit colour images."""
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("holds 32-bit numbers, whose range is not told; save it with 8 or 16 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))
