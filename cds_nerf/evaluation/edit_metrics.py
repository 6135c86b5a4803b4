"""All that is measured of an edit, view by view, from pictures before and after it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cds_nerf.errors import UserError
from cds_nerf.evaluation.clip import (
    DEFAULT_CLIP,
    CLIPFeatures,
    directional_consistency,
    directional_similarity,
    nearer_to_target,
    text_similarity,
)
from cds_nerf.evaluation.consistency import PosedView, neighbours, warp_error
from cds_nerf.evaluation.fidelity import psnr, ssim
from cds_nerf.evaluation.perceptual import lpips
from cds_nerf.evaluation.structure import DEFAULT_DINO, StructureDistance

METRICS = {
    "psnr": "PSNR to the source, dB",
    "psnr_inside": "PSNR to the source where the edit may act, dB",
    "psnr_outside": "PSNR to the source elsewhere, dB",
    "ssim": "SSIM to the source",
    "ssim_inside": "SSIM to the source where the edit may act",
    "ssim_outside": "SSIM to the source elsewhere",
    "warp_error_source": "warp error of the source (lower: more consistent)",
    "warp_error_edit": "warp error of the edit (lower: more consistent)",
    "clip_text_source": "CLIP similarity of the source and its prompt",
    "clip_text_edit": "CLIP similarity of the edit and the target prompt",
    "clip_direction": "CLIP directional similarity",
    "clip_direction_consistency": "its consistency between successive views",
    "clip_accuracy": "CLIP accuracy: share nearer to the target prompt",
    "lpips": "LPIPS to the source (lower: nearer)",
    "structure_distance": "DINO structure distance to the source (lower: nearer)",
    "true_psnr": "PSNR to the true edit, dB",
    "true_psnr_outside": "PSNR to the true edit outside of the object, dB",
    "shows_target": "shows all of the target's words, share of the views",
    "keeps_rest": "keeps the words that stay, share of the views",
    "silhouette": "overlap of the object's silhouette with the true one",
    "detail": "correlation of the object's pattern with the true one",
}
"""What each metric is, as tables say it."""


@dataclass(frozen=True)
class EditedViews:
    """Pictures of something before and after an edit."""

    name: str
    """Of the edit."""
    view_names: Sequence[str]
    """Of the pictures."""
    before: Sequence[Float[Tensor, "3 height width"]]
    """Pictures in 0..1."""
    after: Sequence[Float[Tensor, "3 height width"]]
    """The same views after the edit."""
    relevant: Sequence[Bool[Tensor, "1 height width"]] | None = None
    """Where the edit may act, if that is known."""
    source_prompt: str | None = None
    """Describes the pictures before."""
    target_prompt: str | None = None
    """Describes what they should become."""
    posed_before: Sequence[PosedView] = ()
    """The views with their cameras and depths, where they are of a field."""
    posed_after: Sequence[PosedView] = ()
    """Likewise of the edited field."""
    against_truth: Mapping[str, list[float]] = field(default_factory=dict)
    """Metrics by name, a value for each view, where the true edit is known."""


@dataclass
class Judges:
    """The networks that metrics need, and what could not be had."""

    clip: CLIPFeatures | None = None
    structure: StructureDistance | None = None
    perceptual: bool = True
    left_out: dict[str, str] = field(default_factory=dict)
    """Why metrics are missing, by what they need."""

    @classmethod
    def load(
        cls,
        clip: str = DEFAULT_CLIP,
        dino: str = DEFAULT_DINO,
        skip: Collection[str] = (),
        device: str | torch.device = "cpu",
    ) -> Judges:
        """Load what can be had; the rest is named in `left_out`.

        Args:
            clip: hub id or folder of a CLIP model.
            dino: hub id or folder of a DINO ViT.
            skip: any of "clip", "dino" and "lpips", which are not wanted.
            device: where they run.
        """
        judges = cls(perceptual="lpips" not in skip)
        for name, attribute, make in (
            ("clip", "clip", lambda: CLIPFeatures(clip, device)),
            ("dino", "structure", lambda: StructureDistance(dino, device)),
        ):
            if name not in skip:
                try:
                    setattr(judges, attribute, make())
                except UserError as error:
                    judges.left_out[name] = str(error)
        return judges


def measure(views: EditedViews, judges: Judges) -> dict[str, list[float]]:
    """All metrics of `METRICS` that can be measured, each with a value for each view (or each pair of views).

    Args:
        views: before and after.
        judges: what can be had of the networks; what turns out to be missing is added to its `left_out`.

    Raises:
        UserError: if a view has another size after the edit than before.
    """
    for name, before, after in zip(views.view_names, views.before, views.after, strict=True):
        if before.shape != after.shape:
            sizes = [f"{picture.shape[2]}x{picture.shape[1]}" for picture in (before, after)]
            raise UserError(f"{views.name}: {name} has {sizes[0]} pixels before the edit and {sizes[1]} after it")
    values: dict[str, list[float]] = {}
    for metric, function in (("psnr", psnr), ("ssim", ssim)):
        pairs = list(zip(views.before, views.after, strict=True))
        values[metric] = [function(after[None], before[None]).item() for before, after in pairs]
        if views.relevant is not None:
            for place, invert in (("inside", False), ("outside", True)):
                values[f"{metric}_{place}"] = [
                    function(after[None], before[None], (mask ^ invert)[None]).item()
                    for (before, after), mask in zip(pairs, views.relevant, strict=True)
                ]
    for state, posed in (("source", views.posed_before), ("edit", views.posed_after)):
        if len(posed) > 1:
            pairs_of_views = enumerate(neighbours(list(posed)))
            values[f"warp_error_{state}"] = [warp_error(posed[i], posed[j])[0] for i, j in pairs_of_views]
    if judges.clip is not None:
        values |= _clip_metrics(views, judges.clip)
    if judges.perceptual:
        try:
            values["lpips"] = [
                lpips(before, after).item() for before, after in zip(views.before, views.after, strict=True)
            ]
        except UserError as error:
            judges.perceptual, judges.left_out["lpips"] = False, str(error)
    if judges.structure is not None:
        values["structure_distance"] = [
            judges.structure(before, after).item() for before, after in zip(views.before, views.after, strict=True)
        ]
    values |= views.against_truth
    return {name: values[name] for name in METRICS if name in values}


def mean(values: Sequence[float]) -> float:
    """The mean of a metric over the views that have it; NaN where none has."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _clip_metrics(views: EditedViews, clip: CLIPFeatures) -> dict[str, list[float]]:
    before, after = (
        torch.cat([clip.of_pictures(picture[None]) for picture in pictures]) for pictures in (views.before, views.after)
    )
    values = {"clip_direction_consistency": directional_consistency(before, after)} if len(before) > 1 else {}
    if views.source_prompt is not None and views.target_prompt is not None:
        source_text, target_text = clip.of_text(views.source_prompt), clip.of_text(views.target_prompt)
        values |= {
            "clip_text_source": text_similarity(before, source_text),
            "clip_text_edit": text_similarity(after, target_text),
            "clip_direction": directional_similarity(before, after, source_text, target_text),
            "clip_accuracy": nearer_to_target(after, source_text, target_text),
        }
    return {name: value.tolist() for name, value in values.items()}
