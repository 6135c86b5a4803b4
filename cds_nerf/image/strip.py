"""Several pictures in one row."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def side_by_side(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """RGB pictures of one height in a row on white, `gap` pixels apart."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def strip_steps(steps: int, pictures: int = 6) -> set[int]:
    """The steps after which a strip of so many pictures shows one, besides the source's at 0 and the result's."""
    return {round(steps * index / (pictures - 1)) for index in range(1, pictures - 1)} - {0, steps}
