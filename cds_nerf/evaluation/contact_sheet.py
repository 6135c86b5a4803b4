"""Many pictures on one sheet: what is compared in rows, the views in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP, LABEL_HEIGHT, FONT_SIZE = 6, 24, 15
"""In pixels of the sheet."""
LEAST_SIDE = 128
"""Smaller pictures are enlarged by a whole factor to at least this side."""


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """The pictures on white, each row under its label.

    Args:
        rows: pictures of one size by label, as many in each row.
    """
    first = next(iter(rows.values()))[0]
    scale = -(-LEAST_SIDE // min(first.size)) if min(first.size) < LEAST_SIDE else 1
    width, height = first.width * scale, first.height * scale
    columns = max(len(pictures) for pictures in rows.values())
    step = LABEL_HEIGHT + height + GAP
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), len(rows) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for row, (label, pictures) in enumerate(rows.items()):
        draw.text((GAP, row * step + LABEL_HEIGHT / 2), label, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (GAP + column * (width + GAP), row * step + LABEL_HEIGHT))
    return sheet
