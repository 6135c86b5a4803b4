"""A kind of field that the package does not know is one file, and one line where kinds are registered."""

from __future__ import annotations

import pytest
import torch
from small_edit import SOURCE_PROMPT, TARGET_PROMPT
from textured_plane import PlaneField, PlaneModel, PlaneModelConfig

from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import UserError
from cds_nerf.fields.kinds import KINDS
from cds_nerf.nerf.datamanager import CDSDataManagerConfig
from cds_nerf.nerf.pipeline import CDSPipeline, CDSPipelineConfig


@pytest.fixture
def pipeline(capture, diffusion_folder, tmp_path, monkeypatch) -> CDSPipeline:
    monkeypatch.setitem(KINDS, PlaneModel, PlaneField)
    config = CDSPipelineConfig(
        datamanager=CDSDataManagerConfig(data=capture),
        model=PlaneModelConfig(),
        source_prompt=SOURCE_PROMPT,
        target_prompt=TARGET_PROMPT,
        diffusion_model=DiffusionOptions(model=str(diffusion_folder)),
        guidance_resolution=16,
        orbit_frames=2,
        source_checkpoint=tmp_path / "source.ckpt",
    )
    torch.manual_seed(0)
    source = config.setup(device="cpu", test_mode="inference")
    torch.save({"pipeline": source.state_dict(), "step": 5}, config.source_checkpoint)
    return config.setup(device="cpu", test_mode="val")


def test_textured_plane_is_edited(pipeline, tmp_path):
    pipeline.load_source()
    source = pipeline.model.picture.detach().clone()
    pipeline.begin_edit(tmp_path / "run", seed=0, steps=3)
    groups = pipeline.get_param_groups()
    assert list(groups) == ["picture"]
    optimizer = torch.optim.Adam(groups["picture"], lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        _, losses, _ = pipeline.get_train_loss_dict(step)
        sum(losses.values()).backward()
        optimizer.step()
    assert (pipeline.model.picture - source).abs().max() > 0.01
    torch.testing.assert_close(pipeline.source.image(0), pipeline_image_of(pipeline, source), rtol=0, atol=1 / 255)
    assert pipeline.source.frame(1).shape == (3, int(pipeline.orbit[1].height), int(pipeline.orbit[1].width))


def pipeline_image_of(pipeline: CDSPipeline, picture: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        edited = pipeline.model.picture.clone()
        pipeline.model.picture.copy_(picture)
        image = pipeline.render_training_view(0)
        pipeline.model.picture.copy_(edited)
    return image


def test_another_picture_does_not_load(pipeline):
    state = pipeline.state_dict()
    state["_model.picture"] = torch.rand(1, 3, 4, 4)
    with pytest.raises(UserError, match=r"picture is \[1, 3, 4, 4\], the model's is \[1, 3, 8, 8\]"):
        pipeline.load_pipeline(state, step=0)
