"""The quality of a scene's edit over its held-out views, where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cds_nerf.evaluation.attributes import Words, share_kept, share_with_target
from cds_nerf.evaluation.detail import detail_kept
from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.evaluation.silhouette import silhouette_overlap


@dataclass(frozen=True)
class SceneQuality:
    """How well views show the edited scene."""

    psnr: float
    """To the true edited views, in dB; the mean over the views."""
    psnr_outside: float
    """The same over the pixels in which neither the source's nor the target's object is, in dB."""
    with_target: float
    """Share of the views in which the classifier sees all of the target's words, in 0..1."""
    kept: float
    """Share of the views in which it sees the words that source and target have in common, in 0..1."""
    silhouette: float
    """Overlap of the object's silhouette with the true one, see `silhouette_overlap`, in 0..1; NaN where it hardly
    stands out."""
    detail: float
    """How much of the object's pattern is kept, see `detail_kept`: 1 for all; NaN where it has none."""


def quality_of_views(
    views: Float[Tensor, "views 3 height width"],
    truth: Float[Tensor, "views 3 height width"],
    source_masks: Float[Tensor, "views 1 height width"],
    target_masks: Float[Tensor, "views 1 height width"],
    empty: Float[Tensor, "views 3 height width"],
    plain: Float[Tensor, "views 3 height width"],
    seen: Sequence[Words],
    source: Words,
    target: Words,
) -> dict[str, list[float]]:
    """Measure the views of an edited field; those of the unedited one give what it has to beat.

    Args:
        views: renders of the held-out views, in 0..1.
        truth: the true edited views, in 0..1.
        source_masks: coverage by the object before the edit, in 0..1.
        target_masks: coverage by the object after it, in 0..1.
        empty: the views without the object, in 0..1.
        plain: the true edited views without a pattern on the object, in 0..1.
        seen: what the classifier sees in each view.
        source: the words of the source's caption.
        target: the words of the target's caption.

    Returns:
        The fields of `SceneQuality`, a value for each view.
    """
    return {
        "psnr": psnr(views, truth).tolist(),
        "psnr_outside": psnr(views, truth, outside(source_masks, target_masks)).tolist(),
        "with_target": [share_with_target([words], target) for words in seen],
        "kept": [share_kept([words], source, target) for words in seen],
        "silhouette": silhouette_overlap(views, truth, empty, target_masks).tolist(),
        "detail": detail_kept(views, truth, plain, target_masks).tolist(),
    }


def scene_quality(of_views: Mapping[str, Sequence[float]]) -> SceneQuality:
    """The mean of each measure over the views that have it; NaN where none has."""
    return SceneQuality(
        **{name: torch.tensor(values, dtype=torch.float64).nanmean().item() for name, values in of_views.items()}
    )


def quality_table(rows: Mapping[str, SceneQuality]) -> str:
    """A Markdown table, one row for each name; with the silhouette and the detail kept where they say something."""
    columns = ["PSNR to the true edit", "outside the object", "shows the target", "keeps the rest"]
    cells = {
        name: [f"{row.psnr:.1f} dB", f"{row.psnr_outside:.1f} dB", f"{row.with_target:.0%}", f"{row.kept:.0%}"]
        for name, row in rows.items()
    }
    for key, heading in {"silhouette": "silhouette", "detail": "detail kept"}.items():
        if any(math.isfinite(getattr(row, key)) for row in rows.values()):
            columns.append(heading)
            for name, row in rows.items():
                cells[name].append(f"{getattr(row, key):.2f}")
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())])
