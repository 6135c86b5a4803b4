"""What the viewer's output choice offers of an edit beside what its model renders."""

from __future__ import annotations

from collections.abc import Collection

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor

from cds_nerf.fields.ray_rendering import finest_output
from cds_nerf.nerf.pipeline import CDSPipeline


def with_edit_outputs(
    outputs: dict[str, Tensor],
    pipeline: CDSPipeline,
    camera: Cameras,
    box: OrientedBox | None,
    chosen: Collection[str],
) -> dict[str, Tensor]:
    """A model's outputs, and beside them the source, how the edit differs from it, and where it may act.

    Only what is chosen is made, as the source costs as much as the edit; the edit itself stands in for what is not.

    Args:
        outputs: [H,W,C] by name, with the model's colours among them.
        pipeline: of the edit, which has begun.
        camera: one camera [1] that sees them.
        box: out of which nothing is seen; everything is, if there is none.
        chosen: the names of those that will be shown.

    Returns:
        More of the same kind: `source` [H,W,3]; `difference` [H,W,1], the mean of the absolute differences of colours;
        and `relevance` [H,W,1] in 0..1, where the region can be seen from any camera.

    Raises:
        UserError: if the source is needed and cannot be read any more.
    """
    edit = finest_output(outputs, "rgb")
    assert edit is not None  # or the edit would not have begun
    more: dict[str, Tensor] = {}
    if pipeline.region is not None and pipeline.region.has_a_place:
        more["relevance"] = edit[..., :1]
        if "relevance" in chosen:
            region = pipeline.region.of_camera(camera.to("cpu"), pipeline.next_step - 1)
            more["relevance"] = region.permute(1, 2, 0).to(edit)
    more |= {"difference": edit[..., :1], "source": edit}
    if {"difference", "source"} & set(chosen):
        more["source"] = _source(pipeline, camera, box).to(edit)
        more["difference"] = (edit - more["source"]).abs().mean(dim=-1, keepdim=True)
    return outputs | more


@torch.no_grad()
def _source(pipeline: CDSPipeline, camera: Cameras, box: OrientedBox | None) -> Tensor:
    """The colours [H,W,3] that the unedited field has in the viewer."""
    model = pipeline.unedited.model
    if isinstance(model, SplatfactoModel):
        model.set_background(pipeline.model.background_color)  # as the viewer has set it
    model.eval()
    colors = finest_output(model.get_outputs_for_camera(camera, obb_box=box), "rgb")
    assert colors is not None
    return colors
