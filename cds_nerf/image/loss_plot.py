"""The losses of an edit as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cds_nerf.files import whole_file

LABELS = {"dds_loss": "Delta Denoising Score", "cut_loss": "contrastive loss"}


def write_loss_plot(path: Path, losses: Mapping[str, Sequence[float]], title: str) -> None:
    """Plot one curve above the other over the steps, each with its own scale, as PNG.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(len(losses), sharex=True, squeeze=False)[:, 0]
    for panel, (name, values) in zip(panels, losses.items(), strict=True):
        panel.plot(range(1, len(values) + 1), values, linewidth=1)
        panel.set_ylabel(LABELS.get(name, name))
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title.replace("$", r"\$"), wrap=True)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
