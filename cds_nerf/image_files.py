"""Opening image files of any kind for their pixels: what decorates a file never stops it from being read."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from cds_nerf.errors import UserError, first_line

OTHER_SUFFIXES = {
    *(
        ".mpo",
        ".qoi",
        ".dds",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".jxr",
        ".svg",
        ".eps",
        ".exr",
        ".hdr",
        ".jp2",
    ),
    *(".xcf", ".kra", ".psb", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
}
"""How names of image files end besides those that Pillow says it knows, whether they can be read or not."""
USUAL_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
"""How the names of most image files end."""
PROGRAMS = {"EPS"}
"""Formats that Pillow would hand to an interpreter to run."""
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
"""Pillow's modes between others, and what each is between."""
WHITES = (1, 255, 65535, 2**31 - 1, 2**32 - 1)
"""The greatest numbers of the scales that are in use, such as those of 8 and 16 bits."""
EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where an image's `info` may hold its orientation."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
"""How files of these formats begin."""
START_OF_SCAN, COMMENT, APPLICATIONS = 0xDA, 0xFE, range(0xE0, 0xF0)
"""JPEG markers: of what is followed by the pixels, of comments, and of what programs add."""
EXIF, PROFILE, ADOBE = 0xE1, 0xE2, 0xEE
"""JPEG markers of programs' segments: EXIF data, colour profiles, and how colours are stored."""


def is_image_name(path: Path) -> bool:
    """Whether a file is an image by its name, whether it can be read or not."""
    Image.init()
    suffix = path.suffix.lower()
    mime = Image.MIME.get(Image.registered_extensions().get(suffix, ""), "")
    return mime.startswith("image/") or suffix in OTHER_SUFFIXES


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within, whatever is raised says of the image file why it cannot be read; Pillow's warnings are not shown.

    Raises:
        UserError: if anything is raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}") from error
    except Image.UnidentifiedImageError as error:
        if path.suffix.lower() in USUAL_SUFFIXES or not is_image_name(path):
            raise UserError(f"{path} is not a PNG, JPEG or WebP image") from error
        raise UserError(f"{path} is not of a kind that is read here: convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more pixels than can be trusted to an image reader: make it smaller") from error
    except Exception as error:  # Pillow's readers raise anything on broken files
        raise UserError(f"the image {path} cannot be read: {first_line(error)}") from error


def open_upright(path: Path) -> Image.Image:
    """An image file in its own mode, turned upright as its EXIF data say; of an animation the first frame.

    Raises:
        Exception: whatever Pillow raises where the pixels cannot be read; see `reading`.
    """
    try:
        return _loaded(path)
    except (FileNotFoundError, Image.DecompressionBombError):
        raise
    except Exception:
        content = path.read_bytes()
        if not content.startswith((PNG, JPEG)):
            raise
        return _salvaged(content)


def upright(image: Image.Image) -> Image.Image:
    """A copy of the image without EXIF data, turned as these say. Those that cannot be read say nothing."""
    image.load()
    turn = _turn(image)
    turned = image.copy() if turn is None else image.transpose(turn)
    if plain := PREMULTIPLIED.get(turned.mode):
        turned = turned.convert(plain)
    turned.info = {key: value for key, value in image.info.items() if key not in EXIF_KEYS}
    return turned


def numbers_as_8_bits(values: NDArray[Any], white: float | None = None) -> NDArray[np.uint8]:
    """Numbers of any kind on a scale to 255.

    Args:
        values: integers or floats.
        white: the number that becomes 255; by default the `white_level`.

    Raises:
        UserError: if there are values that are no numbers.
    """
    if not np.isfinite(values).all():
        raise UserError("it has values that are no numbers")
    return (values / (white or white_level(values.max())) * 255).round().clip(0, 255).astype(np.uint8)


def white_level(greatest: float) -> float:
    """The number that is white in a picture with no greater one: the end of the narrowest scale that holds it."""
    return next((white for white in WHITES if greatest <= white), greatest)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright."""
    try:
        return TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises anything on broken EXIF data
        return None


def _loaded(source: Path | io.BytesIO) -> Image.Image:
    Image.init()
    with Image.open(source, formats=[name for name in Image.ID if name not in PROGRAMS]) as file:
        try:
            file.load()
        except Exception:
            if file.tile:  # some pixels are missing; without any, it stumbled over what comes behind them
                raise
        return upright(file)


def _salvaged(content: bytes) -> Image.Image:
    """A PNG or JPEG file's pixels with no more of the rest than its orientation, colours and opacity, if these do.

    Raises:
        Exception: if the file is of another format, or its pixels cannot be read.
    """
    parts = list(_png_parts(content) if content.startswith(PNG) else _jpeg_parts(content))
    kept = {index for index, (_, is_needed) in enumerate(parts) if is_needed}

    def load(indices: set[int]) -> Image.Image:
        return _loaded(io.BytesIO(b"".join(parts[index][0] for index in sorted(indices))))

    image = load(kept)
    for index in set(range(len(parts))) - kept:
        with contextlib.suppress(Exception):  # what is broken is left out
            image = load(kept | {index})
            kept.add(index)
    return image


def _png_parts(content: bytes) -> Iterator[tuple[bytes, bool]]:
    """The chunks of a PNG file that are wanted, each with whether it must be there."""
    yield PNG, True
    start = len(PNG)
    while start + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        is_needed = not kind[0] & 0x20  # in upper case
        if is_needed or kind in (b"tRNS", b"eXIf", b"iCCP"):
            yield content[start:end], is_needed
        start = end


def _jpeg_parts(content: bytes) -> Iterator[tuple[bytes, bool]]:
    """The segments of a JPEG file that are wanted, each with whether it must be there; the pixels are the last."""
    yield content[:2], True
    start = 2
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != START_OF_SCAN:
        marker, length = struct.unpack_from(">xBH", content, start)
        end = start + (1 if marker == 0xFF else 2 + length)  # any number of 0xFF may stand before a marker
        is_needed = marker not in APPLICATIONS and marker != COMMENT
        if is_needed or marker in (EXIF, PROFILE, ADOBE):
            yield content[start:end], is_needed
        start = end
    yield content[start:], True
