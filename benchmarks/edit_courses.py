"""How edits of images went from step to step, as tables and curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from compared_scores import without_contrastive_loss
from torch import Tensor

from cds_nerf.files import whole_file

MEASURES = {
    "psnr": ("PSNR to the true edit, dB", ".1f"),
    "outside": ("outside, dB", ".1f"),
    "silhouette": ("silhouette", ".2f"),
    "detail": ("detail kept", ".3f"),
}
"""What is measured beside success, with heading and form."""


@dataclass(frozen=True)
class Courses:
    """How edits of many images went, all by the same settings."""

    step: Tensor
    """[S]: when they were measured."""
    shows: Tensor
    """[S,N] bool: whether the image shows the target then."""
    measures: dict[str, Tensor]
    """[S,N] of each of `MEASURES`; NaN where there is nothing to measure."""

    @classmethod
    def of(cls, points: Sequence[dict[str, list[float]]]) -> Courses:
        """From what was measured of each image at one step after another."""
        columns = {name: torch.tensor([point[name] for point in points]) for name in points[0]}
        return cls(columns["step"][:, 0], columns["shows"] > 0, {name: columns[name] for name in MEASURES})

    @classmethod
    def joined(cls, courses: Sequence[Courses]) -> Courses:
        """Of the images of all."""
        return cls(
            courses[0].step,
            torch.cat([one.shows for one in courses], dim=1),
            {name: torch.cat([one.measures[name] for one in courses], dim=1) for name in MEASURES},
        )

    @property
    def succeeds(self) -> Tensor:
        """[N] bool: whether the image shows the target at any time."""
        return self.shows.any(dim=0)

    @property
    def first(self) -> Tensor:
        """[N]: where in `step` it does so first; 0 where it never does."""
        return self.shows.int().argmax(dim=0)

    def at_first(self, name: str) -> Tensor:
        """[N]: a measure when the image shows the target first; NaN where it never does."""
        values = self.measures[name].gather(0, self.first[None])[0]
        return values.where(self.succeeds, torch.nan)

    def at_last(self, name: str) -> Tensor:
        """[N]: a measure after the last step; NaN where the image does not show the target then."""
        return self.measures[name][-1].where(self.shows[-1], torch.nan)


def table_of(found: dict[str, Courses]) -> list[str]:
    """What is kept when an image first shows the target, and what after the last step."""
    lines = [
        "At its first success, each image; in brackets, against the same score without the contrastive loss, over the "
        "images that both bring there, ± the standard error:",
        "",
        f"| score | ever succeed | first at step | {' | '.join(heading for heading, _ in MEASURES.values())} |",
        f"| --- |{' ---: |' * (2 + len(MEASURES))}",
    ]
    for name, courses in found.items():
        step = courses.step[courses.first[courses.succeeds]].float()
        cells = _cells(courses, found.get(without_contrastive_loss(name)), Courses.at_first)
        lines.append(f"| {name} | {courses.succeeds.float().mean():.0%} | {step.mean():.0f} | {cells} |")
    lines += ["", "After the last step, those that show the target then:", ""]
    lines.append(f"| score | succeed | {' | '.join(heading for heading, _ in MEASURES.values())} |")
    lines.append(f"| --- |{' ---: |' * (1 + len(MEASURES))}")
    for name, courses in found.items():
        cells = _cells(courses, found.get(without_contrastive_loss(name)), Courses.at_last)
        lines.append(f"| {name} | {courses.shows[-1].float().mean():.0%} | {cells} |")
    return lines


def _cells(courses: Courses, plain: Courses | None, measure: Callable[[Courses, str], Tensor]) -> str:
    cells = []
    for key, (_, form) in MEASURES.items():
        cell = f"{measure(courses, key).nanmean():{form}}"
        if plain is not None and plain is not courses:
            cell += f" ({mean_and_error(measure(courses, key) - measure(plain, key), form)})"
        cells.append(cell)
    return " | ".join(cells)


def mean_and_error(differences: Tensor, form: str) -> str:
    """The mean of what is no NaN, with its sign, ± its standard error."""
    known = differences[differences.isfinite()]
    return f"{known.mean():+{form}} ± {known.std() / len(known) ** 0.5:{form}}" if len(known) > 1 else "unknown"


def plot_courses(found: dict[str, Courses], path: Path) -> None:
    """The share of images that show the target against what is kept of them, a curve of each score over the steps."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(18, 4.5), layout="constrained")
    for axis, (key, (heading, _)) in zip(axes, MEASURES.items(), strict=True):
        axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)  # the usual ten would come twice
        for name, courses in found.items():
            success = 100 * courses.shows.float().mean(dim=1)
            axis.plot(success, courses.measures[key].nanmean(dim=1), "o-", markersize=3, label=name)
        axis.set(xlabel="success, %", ylabel=heading)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=90)
    plt.close(figure)
