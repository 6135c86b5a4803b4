"""The losses of an edit as a plot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO

from matplotlib.figure import Figure
from PIL import Image


def plot_losses(losses: Mapping[str, Sequence[float]], title: str) -> Image.Image:
    """One curve above the other over the steps, each with its own scale; an empty panel without any."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(max(len(losses), 1), sharex=True, squeeze=False)[:, 0]
    for panel, (name, values) in zip(panels, losses.items(), strict=False):
        panel.plot(range(1, len(values) + 1), values, linewidth=1)
        panel.set_ylabel(name.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title.encode(errors="replace").decode(), wrap=True, parse_math=False)
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font has not is a box
        figure.savefig(buffer, format="png", dpi=120)
    return Image.open(buffer)
