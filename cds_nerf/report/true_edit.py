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
from cds_nerf.evaluation.attributes import share_kept, share_with_target
from cds_nerf.evaluation.detail import detail_kept
from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.evaluation.silhouette import silhouette_overlap
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.dataset import SETTINGS_FILE, Capture
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import ATTRIBUTES, Scene, parse_caption


def against_true_edit(
    views: Sequence[Float[Tensor, "3 height width"]], photographs: Sequence[Path], target_prompt: str
) -> dict[str, list[float]]:
    """Metrics of the edited views of a scene whose true edit is known, one value a view.

    Args:
        views: of the edited field, in 0..1.
        photographs: of the same views, in the scene's folder; they need not be there.
        target_prompt: of the edit.

    Returns:
        `true_psnr`, `true_psnr_outside`, `shows_target`, `keeps_rest`, `silhouette` and `detail` (see
        `SceneQuality`); none of them where the capture is no such scene, the prompt is not in its words, or the views
        have another size than the capture.
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
    plain, _ = render(replace(edited, detail=None), poses, capture.size)
    source, target = (_words(scene) for scene in (capture.scene(), edited))
    seen = AttributeClassifier.from_pretrained().classify(images)
    metrics = {
        "true_psnr": psnr(images, truth).tolist(),
        "true_psnr_outside": psnr(images, truth, outside(source_masks, masks)).tolist(),
        "shows_target": [share_with_target([words], target) for words in seen],
        "keeps_rest": [share_kept([words], source, target) for words in seen],
        "silhouette": silhouette_overlap(images, truth, empty, masks).tolist(),
    }
    if capture.detail:
        metrics["detail"] = detail_kept(images, truth, plain, masks).tolist()
    return metrics


def _capture_of(photographs: Sequence[Path]) -> Capture | None:
    """The made scene whose photographs these are, if it is one."""
    folders = {path.parent.parent for path in photographs if path.parent.name == "images"}
    if len(folders) != 1:
        return None
    path = folders.pop() / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text("utf8"))
        return Capture.of(**settings)
    except (OSError, ValueError, TypeError):  # another program's file of that name, or none
        return None


def _words(scene: Scene) -> dict[str, str]:
    return {name: getattr(scene, name) for name in ATTRIBUTES}
