"""The losses of an edit as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cds_nerf.files import whole_file


def write_loss_plot(path: Path, losses: Mapping[str, Sequence[float]], title: str) -> None:
    """Plot one curve above the other over the steps, each with its own scale, as PNG; an empty panel without any.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(max(len(losses), 1), sharex=True, squeeze=False)[:, 0]
    for panel, (name, values) in zip(panels, losses.items(), strict=False):
        panel.plot(range(1, len(values) + 1), values, linewidth=1)
        panel.set_ylabel(name.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title.replace("$", r"\$"), wrap=True)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
