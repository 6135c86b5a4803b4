"""Reading image files of any kind as 8-bit RGB or as masks, and writing results that say how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.image_files import numbers_as_8_bits, open_upright, reading, upright
from cds_nerf.masks import as_mask

SETTINGS_KEY = "cds-nerf"
"""The PNG text chunk that holds the settings, as JSON."""
CONTENT_KEY = "cds-nerf-content"
"""The PNG text chunk that holds hashes of what a picture was made from, as JSON."""


def read_image(path: Path, background: str = "white") -> Image.Image:
    """An image file as 8-bit RGB, turned upright as its EXIF data say; of an animation the first frame.

    The colour profile is kept in the image's `info`, and the values are not converted.

    Args:
        path: a file of any format that Pillow reads.
        background: the colour behind transparent pixels.

    Raises:
        UserError: if there is no such file or it does not read as an image.
    """
    with reading(path):
        file = open_upright(path)
        image = as_upright_rgb(file, background)
        profile = file.info.get("icc_profile")
        # One of greys or of inks says nothing of what they have become.
        image.info = {"icc_profile": profile} if file.mode in ("RGB", "RGBA", "P") and _is_for_rgb(profile) else {}
        return image


def read_mask(path: Path, size: tuple[int, int] | None = None, image: str | Path = "its image") -> Image.Image:
    """A mask as 8-bit grey, white where something may happen: see `as_mask`.

    Args:
        path: a picture of any mode and depth that a painting program saves.
        size: the width and height that it must have, if given.
        image: what has this size, by its name.

    Raises:
        UserError: if it cannot be read or has another size.
    """
    with reading(path):
        mask = as_mask(open_upright(path))
    if size is not None and mask.size != size:
        raise UserError(
            f"the mask {path} is {mask.width}x{mask.height} pixels; it must be {size[0]}x{size[1]} as {image} is"
        )
    return mask


def as_upright_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """The image as 8-bit RGB: turned as its EXIF data say, numbers of other depths scaled, transparency composited.

    Raises:
        UserError: if it has values that are no numbers.
    """
    image = upright(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversions to 8 bits clip
        image = Image.fromarray(numbers_as_8_bits(np.asarray(image), white=65535))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(numbers_as_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _is_for_rgb(profile: bytes | None) -> bool:
    """Whether a colour profile is one, says what RGB values mean, and fits into a PNG that Pillow opens again."""
    return (
        profile is not None
        and len(profile) <= PngImagePlugin.MAX_TEXT_CHUNK
        and profile[16:20] == b"RGB "
        and profile[36:40] == b"acsp"
    )


def write_png(
    path: Path,
    image: Image.Image,
    settings: dict[str, Any],
    icc_profile: bytes | None = None,
    content: dict[str, str] | None = None,
) -> None:
    """Write a PNG with the settings that made it in its text chunk `SETTINGS_KEY`.

    Args:
        path: of the file.
        image: what is to be written.
        settings: what can be typed to make it again.
        icc_profile: the image's colour profile.
        content: hashes of what it was made from, for the text chunk `CONTENT_KEY`.

    Raises:
        UserError: if it cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(SETTINGS_KEY, as_json(settings))
    if content is not None:
        chunks.add_itxt(CONTENT_KEY, as_json(content))
    with whole_file(path) as file:
        image.save(file, format="PNG", pnginfo=chunks, icc_profile=icc_profile)


def read_texts(path: Path) -> dict[str, str]:
    """What the text chunks before a PNG's pixels say, by their keys.

    Raises:
        UserError: if it does not read as a PNG.
    """
    with reading(path), Image.open(path, formats=["PNG"]) as file:
        return {str(key): value for key, value in file.info.items() if isinstance(value, str)}


def as_json(value: Any) -> str:
    """JSON that can be written anywhere: bytes of a file's name that are no UTF-8 are escaped."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
