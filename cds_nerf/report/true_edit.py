"""What an edit of a scene that `cds-nerf make-scene` made has come to, against the edit that it should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cds_nerf.errors import UserError
from cds_nerf.evaluation.scene_edit import quality_of_views
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.dataset import SETTINGS_FILE, Capture
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import parse_caption

METRICS = {
    "true_psnr": "psnr",
    "true_psnr_outside": "psnr_outside",
    "shows_target": "with_target",
    "keeps_rest": "kept",
    "silhouette": "silhouette",
    "detail": "detail",
}
"""What is measured, by the names that `cds-nerf evaluate` has for it, as a field of `SceneQuality`."""


def against_true_edit(
    views: Sequence[Float[Tensor, "3 height width"]], photographs: Sequence[Path], target_prompt: str
) -> dict[str, list[float]]:
    """Metrics of the edited views of a scene whose true edit is known, one value a view.

    Args:
        views: of the edited field, in 0..1.
        photographs: of the same views, in the scene's folder; they need not be there.
        target_prompt: of the edit.

    Returns:
        `METRICS` by name, `detail` where there is some; none of them where the capture is no such scene, the prompt is
        not in its words, or the views have another size than the capture.
    """
    capture = _capture_of(photographs)
    if capture is None or any(view.shape[1:] != (capture.size, capture.size) for view in views):
        return {}
    try:
        edited = capture.scene().edited(parse_caption(target_prompt))
    except UserError:  # it says something else of the scene
        return {}
    poses = capture.poses()[[int(path.stem) for path in photographs]]
    images = torch.stack(list(views))
    _, source_masks = render(capture.scene(), poses, capture.size)
    truth, masks = render(edited, poses, capture.size)
    empty, _ = render(edited.without_object, poses, capture.size)
    plain = render(replace(edited, detail=None), poses, capture.size)[0] if capture.detail else truth
    seen = AttributeClassifier.from_pretrained().classify(images)
    found = quality_of_views(
        images, truth, source_masks, masks, empty, plain, seen, capture.scene().words, edited.words
    )
    return {name: found[field] for name, field in METRICS.items() if field != "detail" or capture.detail}


def _capture_of(photographs: Sequence[Path]) -> Capture | None:
    """The made scene whose photographs these are, if it is one."""
    folders = {path.parent.parent for path in photographs if path.parent.name == "images"}
    if len(folders) != 1:
        return None
    path = folders.pop() / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text("utf8"))
        capture = Capture.of(**settings)
    except (OSError, ValueError, TypeError):  # another program's file of that name, or none
        return None
    names = {f"{index:04d}" for index in range(capture.views)}
    return capture if names.issuperset(path.stem for path in photographs) else None
