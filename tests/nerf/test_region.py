"""Where an edit may act: masks, a box, a text, several of them together, and what is wrong with them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_edit import VIEWS, fresh, load_checkpoint, run, train_source, write_capture, write_masks

from cds_nerf.errors import UserError
from cds_nerf.fields.orbit import viewed_point
from cds_nerf.nerf.region import RegionConfig
from cds_nerf.nerf.settings_check import check_values


def regions(pipeline) -> list[torch.Tensor]:
    return [pipeline.region.of_view(index, step=0) for index in range(VIEWS)]


def edited(edit_config, **region):
    keywords = {f"pipeline__region__{name}": value for name, value in region.items()}
    return run(edit_config(max_num_iterations=1, **keywords)).pipeline


def gradient_of_the_score(pipeline) -> float:
    pipeline.config.held_rays = 0  # their gradients are there before the losses
    pipeline.zero_grad()
    _, losses, _ = pipeline.get_train_loss_dict(step=0)
    (losses["dds_loss"] + losses["cut_loss"]).backward()
    return sum(float(p.grad.abs().sum()) for p in pipeline.model.field.parameters() if p.grad is not None)


def test_masks_of_a_folder_are_found_by_the_names_of_the_images(edit_config, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for index in range(VIEWS):
        mask = Image.new("RGBA", (80, 48), "black")  # twice the photographs' size
        mask.paste("white", (0, 0, 40, 48))
        mask.save(folder / f"{index:03d}.png")
    pipeline = edited(edit_config, kind="masks", masks=folder)
    for region in regions(pipeline):
        left, right = region.tensor_split(2, dim=2)
        assert left[..., :-1].min() == 1 and right[..., 1:].max() == 0
    assert gradient_of_the_score(pipeline) > 0


def test_nothing_is_edited_outside_a_box_and_all_of_it_inside(edit_config):
    pipeline = edited(edit_config, kind="box", box_center=(50.0, 50.0, 50.0), box_scale=(0.1, 0.1, 0.1))
    assert max(region.max() for region in regions(pipeline)) == 0
    assert gradient_of_the_score(pipeline) == 0
    pipeline = edited(edit_config, kind="box", box_scale=(9.0, 9.0, 9.0))
    assert min(region.min() for region in regions(pipeline)) == 1


def test_box_is_seen_where_it_is(edit_config):
    pipeline = edited(edit_config, kind="none")
    centre = viewed_point(pipeline.datamanager.train_dataset.cameras)
    box = RegionConfig(kind="box", box_center=tuple(centre.tolist()), box_scale=(0.3, 0.3, 0.3))
    camera = pipeline.views[0]
    region = replace(pipeline.region, config=box, _views={}).of_camera(camera, step=0)[0]
    rays = camera.generate_rays(0, keep_shape=True)
    along = torch.linspace(0.1, 5, 2000)[:, None, None, None]
    points = rays.origins + along * rays.directions - centre
    inside = (points.abs() < 0.15).all(dim=-1).any(dim=0)
    assert 0 < inside.float().mean() < 0.5
    assert (region.bool() == inside).float().mean() > 0.98


def test_kinds_combine(edit_config, tmp_path):
    everywhere = {"box_scale": (9.0, 9.0, 9.0), "masks": write_masks(tmp_path / "masks")}
    without = edited(edit_config, kind="box-masks", **everywhere)
    for region in regions(without):
        left, right = region.tensor_split(2, dim=2)
        assert left[..., :-1].max() == 0 and right[..., 1:].min() == 1


def test_region_of_a_text_is_measured_without_another_model(edit_config):
    pipeline = edited(edit_config, kind="text", text="the fox")
    measured = pipeline.source.folder / "measured"
    assert len(list((measured / "text").glob("*"))) == VIEWS and not (measured / "auto").exists()
    assert max(region.max() for region in regions(pipeline)) == 1


def test_region_is_seen_from_any_camera(edit_config):
    pipeline = edited(edit_config)
    region = pipeline.region.of_camera(pipeline.orbit[0], step=0)
    assert region.shape[1:] == (int(pipeline.orbit[0].height), int(pipeline.orbit[0].width))
    assert 0 <= region.min() <= region.max() <= 1


def test_masked_pixels_of_a_capture_never_guide_an_edit(edit_config, tmp_path):
    capture = write_capture(tmp_path / "masked", masks=True)
    pipeline = run(edit_config(max_num_iterations=1, data=capture, pipeline__region__kind="none")).pipeline
    for region in regions(pipeline):
        height, width = region.shape[1:]
        assert region[0, : height // 2 - 1, : width // 2 - 1].max() == 0
        assert region[0, height // 2 + 1 :].min() == 1


def test_relevance_costs_six_samples_of_a_few_views_alone(edit_config, tmp_path, monkeypatch):
    from cds_nerf.nerf.method import cds_source

    capture = write_capture(tmp_path / "many", views=30)
    source = train_source(fresh(cds_source.config), capture, tmp_path / "source")
    config = edit_config(
        max_num_iterations=1, load_dir=source / "nerfstudio_models", data=capture, pipeline__orbit_frames=0
    )
    monkeypatch.setattr("cds_nerf.nerf.edit_renders.EditRenders.finish", lambda self, step: None)
    pipeline = run(config).pipeline
    folder = pipeline.source.folder
    assert len(list((folder / "measured" / "auto").glob("*"))) == 10
    assert len(list((folder / "latents").glob("*"))) <= 11  # and the first view, which the strips show
    for step in range(1, 16):
        pipeline.get_train_loss_dict(step)
    assert len(list((folder / "measured" / "auto").glob("*"))) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "fox"}, "kind is 'fox'; it must be one of auto, text, masks, box, none"),
        ({"kind": "auto++box"}, r"kind is 'auto\+\+box'"),
        ({"kind": "none-box"}, "none goes with no other"),
        ({"kind": "text"}, "--pipeline.region.text is missing"),
        ({"kind": "masks", "masks": Path("nowhere")}, "masks is nowhere, which is no folder"),
        ({"kind": "box", "box_scale": (1.0, 0.0, 1.0)}, "each side must be greater than 0"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        RegionConfig(**settings).terms()


def test_measured_files_hold_plain_tensors(edit_config):
    pipeline = edited(edit_config)
    measured = load_file(pipeline.source.folder / "measured" / "distance" / "00000.safetensors")
    assert (
        measured["distance"].shape
        == load_file(pipeline.source.folder / "measured" / "auto" / "00000.safetensors")["auto"].shape
    )


def test_a_lower_ramp_makes_the_region_wider(edit_config):
    narrow = torch.stack(regions(edited(edit_config, ramp=(0.97, 1.0))))
    wide = torch.stack(regions(edited(edit_config)))
    assert (wide >= narrow).all() and wide.sum() > narrow.sum()


@pytest.mark.parametrize("settings", [{"ramp": (0.97, 1.0)}, {"kind": "box", "box_scale": (0.5, 0.5, 0.5)}])
def test_region_that_follows_edges_is_another_and_stays_in_its_range(edit_config, settings):
    measured = torch.stack(regions(edited(edit_config, **settings)))
    followed = torch.stack(regions(edited(edit_config, **settings, follow_edges=True)))
    assert not torch.equal(measured, followed)
    assert followed.min() >= 0 and followed.max() <= 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ramp": (0.6, 0.6)}, "region.ramp is 0.6 0.6; the first must be less, and both from 0 to 1"),
        ({"ramp": (0.5, 1.5)}, "region.ramp is 0.5 1.5; the first must be less"),
        (
            {"ramp": (0.1, 0.2), "kind": "box"},
            "--pipeline.region.ramp is for the region auto or text, and --pipeline.region.kind is box",
        ),
        (
            {"follow_edges": True, "kind": "masks"},
            "--pipeline.region.follow-edges is for the region auto or box or text, and --pipeline.region.kind is masks",
        ),
        ({"text": "the fox"}, "--pipeline.region.text is for the region text, and --pipeline.region.kind is auto"),
        ({"box_scale": (1.0, 2.0, 1.0), "kind": "none"}, "--pipeline.region.box-scale is for the region box, and"),
        ({"masks": Path("."), "kind": "auto+box"}, "--pipeline.region.masks is for the region masks, and"),
    ],
)
def test_settings_of_a_region_that_cannot_act_are_told(edit_config, settings, told):
    config = edit_config(**{f"pipeline__region__{name}": value for name, value in settings.items()})
    with pytest.raises(UserError, match=re.escape(told)):
        check_values(config)


def test_edit_that_began_with_an_idle_setting_of_its_region_still_goes_on(edit_config):
    config = edit_config(max_num_iterations=1)
    run(config)
    path = config.get_base_dir() / "config.yml"
    recorded = path.read_text()
    assert recorded.count("text: ''") == 1
    path.write_text(recorded.replace("text: ''", "text: the fox"))  # as a version that did not refuse it wrote it
    resumed = run(edit_config(max_num_iterations=2, pipeline__resume_from=config.get_base_dir()))
    assert resumed.pipeline.config.region.text == "the fox"
    assert load_checkpoint(config.get_base_dir())["step"] == 1
