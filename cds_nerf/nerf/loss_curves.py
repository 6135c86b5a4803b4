"""A picture of losses over the steps, drawn in a few milliseconds: the viewer shows it while the edit runs.

matplotlib, which draws the losses of an image's edit when it is done, takes half a second for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 480, 110
"""Of one loss's panel, in pixels."""
FOOT = 28
"""Below all of them."""
_FINE = 2
"""Lines are drawn at so many times the size, and made smooth by shrinking."""
_FONT, _LINE_WIDTH = 20, 2
"""In pixels of the picture, which the viewer shows at half its size."""
_TEXT, _LINE, _FRAME = "#333333", "#1f77b4", "#cccccc"


def draw_curves(losses: Mapping[str, Sequence[float | None]]) -> Image.Image:
    """One curve above the other, each with its own scale, its greatest and least value and its last.

    Args:
        losses: by name, at least one; values from the first step on, None where a step has none.
    """
    steps = max(len(values) for values in losses.values())
    pictures = [_panel(name, values, steps) for name, values in losses.items()]
    column = Image.new("RGB", (WIDTH, HEIGHT * len(pictures) + FOOT), "white")
    for number, picture in enumerate(pictures):
        column.paste(picture, (0, HEIGHT * number))
    draw, font = ImageDraw.Draw(column), ImageFont.load_default(_FONT)
    draw.text((8, column.height - 26), "step 0", _TEXT, font)
    draw.text((WIDTH - 8, column.height - 26), f"step {steps - 1}", _TEXT, font, anchor="ra")
    return column


def _panel(name: str, values: Sequence[float | None], steps: int) -> Image.Image:
    """One curve; it has gaps where there are no values."""
    left, right, top, bottom = 8, WIDTH - 108, 30, HEIGHT - 6
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high - low or 1.0
    panel = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), "white")
    draw = ImageDraw.Draw(panel)
    draw.rectangle([_FINE * side for side in (left, top, right, bottom)], outline=_FRAME, width=_FINE)
    for run in _runs(values):
        points = [
            (
                _FINE * (left + (right - left) * step / max(steps - 1, 1)),
                _FINE * (bottom - 3 - (bottom - top - 6) * (value - low) / span),
            )
            for step, value in run
        ]
        if len(points) > 1:
            draw.line(points, _LINE, width=_FINE * _LINE_WIDTH)
        else:
            draw.point(points, _LINE)
    panel = panel.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(_FONT)
    label = name.removesuffix("_loss").replace("_", " ")
    draw.text((left, 3), label + (f"  {known[-1]:.3g}" if known else ""), _TEXT, font)
    draw.text((right + 8, top - 6), f"{high:.3g}", _TEXT, font)
    draw.text((right + 8, bottom - 18), f"{low:.3g}", _TEXT, font)
    return panel


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Steps and values, apart where there is a gap."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in enumerate(values):
        if value is not None:
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
