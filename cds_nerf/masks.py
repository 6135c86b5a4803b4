"""What a picture says as a mask: one rule for whatever a program saves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cds_nerf.image_files import numbers_as_8_bits, upright

ONES = (1, 17, 85)
"""What a 1 of 8, 4 and 2 bits is on a scale to 255."""
COLOURLESS = 16
"""How far the channels of a grey differ on a scale to 255, at most."""
NEAR = 32
"""How far from black or white a pixel may be to count as such, on a scale to 255."""
DRAWN = 0.5
"""Share of the visible pixels that are near black or white in a drawing, at least; 0.2 are in a photograph, and 0.65 in
a relevance map."""
COLOURED = 0.05
"""Share of the visible pixels that have a colour in a drawing, at most."""
LOOKED_AT = 500_000
"""How many of the visible pixels are looked at for that, at most."""


def as_mask(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit grey, white where something may happen, turned upright as its EXIF data say.

    Brightness counts. Where there are no other values than 0 and 1, 1 is white, whatever the depth; where a palette's
    first two colours are used, a black and one that is no grey, the second is white. Where a picture is not opaque:
    if what is visible is a drawing in black and white, it lies on black; else, such as in a photograph of which a part
    has been erased, opacity counts in place of brightness.

    Raises:
        UserError: if the picture has values that are no numbers.
    """
    image = upright(image)
    grey = _brightness(image)
    if not image.has_transparency_data:
        return Image.fromarray(grey)
    pixels = np.asarray(image.convert("RGBA"))
    opacity = _ones_as_white(pixels[..., 3])
    if opacity.min() == 255:
        return Image.fromarray(grey)
    if not _is_drawing(pixels[..., :3][opacity > 0]):
        return Image.fromarray(opacity)
    return Image.fromarray((grey * (opacity / 255)).round().astype(np.uint8))


def _brightness(image: Image.Image) -> NDArray[np.uint8]:
    """A number in 0..255 for each pixel, whatever is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        return numbers_as_8_bits(np.asarray(image))
    if image.mode == "P" and _is_labels(image):
        return numbers_as_8_bits(np.asarray(image))
    if image.mode in ("L", "LA", "LAB"):
        return _ones_as_white(np.asarray(image.getchannel("L")))
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return np.asarray(Image.fromarray(_ones_as_white(np.asarray(colours)[..., :3])).convert("L"))


def _is_labels(image: Image.Image) -> bool:
    """Whether a picture with a palette means the indices into it, and not the colours."""
    used = np.flatnonzero(np.bincount(np.asarray(image).ravel()))
    palette = np.zeros((256, 3), dtype=int)
    given = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    palette[: len(given)] = given
    if len(used) > 1 and not np.ptp(palette[used], axis=0).any():  # there are no colours to tell
        return True
    return used.max() <= 1 and not palette[0].any() and np.ptp(palette[1]) > COLOURLESS


def _is_drawing(colours: NDArray[np.uint8]) -> bool:
    """Whether pixels [N,3] are those of a drawing in black and white, or of a map that is mostly black or white."""
    colours = colours[:: len(colours) // LOOKED_AT + 1]
    spread, grey = np.ptp(colours, axis=1), colours.mean(axis=1)
    drawn = (spread <= COLOURLESS) & ((grey <= NEAR) | (grey >= 255 - NEAR))
    return bool(drawn.sum() >= DRAWN * len(colours) and (spread > COLOURLESS).sum() <= COLOURED * len(colours))


def _ones_as_white(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Values with 255 for 1, where there are no others than 0 and 1."""
    one = values.max()
    if one in ONES and ((values == 0) | (values == one)).all():
        return np.where(values > 0, 255, 0).astype(np.uint8)
    return values
