"""Reading image files of any kind as upright 8-bit RGB, and writing results that say how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file

FORMATS = ("PNG", "JPEG", "WEBP")
"""The image formats that are read."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""How their files' names end."""
SETTINGS_KEY = "cds-nerf"
"""The PNG text chunk that holds the settings, as JSON."""


def read_image(path: Path, background: str = "white") -> Image.Image:
    """An image file as 8-bit RGB, turned upright as its EXIF data say; of an animation the first frame.

    The colour profile is kept in the image's `info`, and the values are not converted.

    Args:
        path: a PNG, JPEG or WebP file.
        background: the colour behind transparent pixels.

    Raises:
        UserError: if there is no such file or it does not read as an image.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            file.load()
            image = as_upright_rgb(file, background)
            profile = file.info.get("icc_profile")
            # One of greys or of inks says nothing of what they have become.
            image.info = {"icc_profile": profile} if profile and file.mode in ("RGB", "RGBA", "P") else {}
            return image
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is not a PNG, JPEG or WebP image") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more pixels than can be trusted to an image reader: make it smaller") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise on broken files
        raise UserError(f"the image {path} cannot be read: {error}") from error


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """A mask as 8-bit grey: white where something may happen.

    Args:
        path: a picture of any mode that a painting program saves.
        size: the width and height that it must have, if given.

    Raises:
        UserError: if it cannot be read or has another size.
    """
    mask = read_image(path, background="black").convert("L")
    if size is not None and mask.size != size:
        raise UserError(f"the mask {path} is {mask.width}x{mask.height} pixels; it must be {size[0]}x{size[1]}")
    return mask


def as_upright_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """The image as 8-bit RGB: turned as its EXIF data say, 16-bit values scaled, transparency composited."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit; Pillow's own conversion to 8 bits clips
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def write_png(path: Path, image: Image.Image, settings: dict[str, Any], icc_profile: bytes | None = None) -> None:
    """Write a PNG with the settings that made it in its text chunk `SETTINGS_KEY`.

    Raises:
        UserError: if it cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(SETTINGS_KEY, json.dumps(settings, ensure_ascii=False))
    with whole_file(path) as file:
        image.save(file, format="PNG", pnginfo=chunks, icc_profile=icc_profile)
