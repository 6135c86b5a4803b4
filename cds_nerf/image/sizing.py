"""The size at which an image is edited."""

from __future__ import annotations

from PIL import Image

from cds_nerf.errors import UserError

LONGEST_RATIO = 8
"""Images longer than this many times their shorter side are refused: they would be resized to a giant."""


def check_proportions(width: int, height: int) -> None:
    """Raise a UserError where an image is too long to be edited in its own proportions, whatever the model."""
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise UserError(
            f"the image is {width}x{height} pixels; one side may be at most {LONGEST_RATIO} times the other: "
            "crop it, or edit it squashed to a square"
        )


def edit_size(width: int, height: int, resolution: int, multiple: int, square: bool = False) -> tuple[int, int]:
    """The width and height at which an image is edited: its own proportions, or nearly.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        resolution: the shorter side of the result.
        multiple: the longer side is rounded to a multiple of this many pixels.
        square: both sides are the resolution, whatever the image's proportions.

    Raises:
        UserError: if the resolution is no multiple, or the image is too small or too long.
    """
    if resolution < multiple or resolution % multiple:
        below = max(resolution // multiple, 0) * multiple
        nearest = f"{below} or {below + multiple}" if below else str(multiple)
        raise UserError(
            f"resolution is {resolution}; the model's sides are multiples of {multiple}: the nearest is {nearest}"
        )
    shorter, longer = sorted((width, height))
    if shorter < multiple:
        raise UserError(f"the image is {width}x{height} pixels; each side must have at least {multiple}")
    if square:
        return resolution, resolution
    check_proportions(width, height)
    long_side = round(longer * resolution / shorter / multiple) * multiple
    return (resolution, long_side) if width <= height else (long_side, resolution)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at (width, height); the same object where it has that size already."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
