"""What an edit of splats gives: their own number of Gaussians, moved; and the same however often it was interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import VIEWS, edit_config_for, load_checkpoint, run, train_splat_source, write_masks
from test_edit import assert_equal_states, interrupt_at

from cds_nerf.fields.growing import source_indices
from cds_nerf.nerf.held_out import render_held_out
from cds_nerf.nerf.pipeline import CDSPipeline

GAUSSIANS = ("means", "scales", "quats", "features_dc", "features_rest", "opacities")


def gaussians(run_folder: Path) -> dict[str, Any]:
    state = load_checkpoint(run_folder)["pipeline"]
    return {name: state[f"_model.gauss_params.{name}"] for name in GAUSSIANS}


@pytest.fixture
def splat_edit(splat_run, diffusion_folder, tmp_path):
    def make(source: Path = splat_run, **typed: object) -> Any:
        return edit_config_for(source, diffusion_folder, tmp_path / "outputs", **typed)

    return make


@pytest.mark.quick
def test_edit_moves_all_of_every_gaussian_and_keeps_their_number(splat_edit, splat_run):
    config = splat_edit()
    trainer = run(config)
    before, after = gaussians(splat_run), gaussians(config.get_base_dir())
    for name in GAUSSIANS:
        assert before[name].shape == after[name].shape
        assert not torch.equal(before[name], after[name]), name
        (moved,) = trainer.optimizers.optimizers[name].param_groups[0]["params"]
        assert moved is trainer.pipeline.model.gauss_params[name]
    assert len(list((config.get_base_dir() / "edited_views").glob("*.png"))) == VIEWS


@pytest.mark.parametrize("growing", ["off", "greatest"])
def test_gaussians_outside_the_region_stay_to_the_last_bit(splat_edit, splat_run, tmp_path, growing):
    settings = {"pipeline__growing__share": 0.5, "pipeline__growing__every": 1} if growing != "off" else {}
    config = splat_edit(
        max_num_iterations=4,
        pipeline__region__kind="masks",
        pipeline__region__masks=write_masks(tmp_path / "masks"),
        pipeline__growing__kind=growing,
        **settings,
    )
    trainer = run(config)
    before, after = gaussians(splat_run), gaussians(config.get_base_dir())
    field = trainer.pipeline.field
    held = (~field.free).nonzero().flatten()
    assert 0.1 < len(held) / len(before["means"]) < 0.9
    origin = source_indices(field.model, trainer.optimizers.optimizers)[held]
    assert torch.equal(origin.unique(), (~field.free_in_source).nonzero().flatten())  # each once: none was doubled
    for name in GAUSSIANS:
        assert torch.equal(after[name][held], before[name][origin]), name
    if growing == "off":
        assert (after["means"][field.free] != before["means"][field.free]).any()


def test_edit_reads_no_photograph(splat_edit, monkeypatch):
    def read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(InputDataset, "get_numpy_image", read)
    run(splat_edit())


def test_source_is_what_splatfacto_shows(splat_edit, splat_run):
    """Before the first step the edit's frames are the source's own, on the source's background."""
    _, source, _, _ = eval_setup(splat_run / "config.yml", test_mode="inference")
    pipeline = run(splat_edit(max_num_iterations=1)).pipeline
    with pipeline.source_weights():
        frame = pipeline.render_frame(0)
        width = int(pipeline.orbit[0].width)
        expected = source.model.get_outputs_for_camera(pipeline.orbit[0])["rgb"].permute(2, 0, 1)
    torch.testing.assert_close(frame, expected)
    assert int(pipeline.orbit[0].width) == width


@pytest.mark.quick
@pytest.mark.parametrize("interrupted_at", [1, 3])
def test_resumed_edit_equals_uninterrupted(splat_edit, monkeypatch, interrupted_at):
    whole = splat_edit(timestamp="whole", max_num_iterations=4)
    run(whole)
    broken = splat_edit(timestamp="broken", max_num_iterations=4, steps_per_save=2)
    with monkeypatch.context() as patch, pytest.raises(BaseException, match="interrupted"):
        interrupt_at(patch, interrupted_at)
        run(broken)
    folder = broken.get_base_dir()
    run(splat_edit(load_dir=None, prompt=None, max_num_iterations=None, pipeline__resume_from=folder))
    assert_equal_states(load_checkpoint(folder), load_checkpoint(whole.get_base_dir()))


def test_edit_of_an_edit(splat_edit):
    first = splat_edit(timestamp="first")
    run(first)
    second = splat_edit(first.get_base_dir(), timestamp="second", max_num_iterations=1)
    pipeline = run(second).pipeline
    with pipeline.source_weights():
        for name, values in gaussians(first.get_base_dir()).items():
            assert torch.equal(pipeline.model.gauss_params[name].cpu(), values)


def test_edit_opens_in_nerfstudios_own_commands(splat_edit, tmp_path):
    config = splat_edit()
    run(config)
    _, pipeline, _, _ = eval_setup(config.get_base_dir() / "config.yml", test_mode="test")
    camera, batch = pipeline.datamanager.next_train(0)
    pipeline.eval()
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].shape == batch["image"].shape
    for name, values in gaussians(config.get_base_dir()).items():
        assert torch.equal(pipeline.model.gauss_params[name].cpu(), values)
    render_held_out(config.get_base_dir(), tmp_path / "held_out")


def test_points_that_splats_began_with_are_not_read(splat_edit, splat_run, capture, tmp_path, monkeypatch):
    """Neither by an edit nor for pictures of the source: open3d, which reads them, is not everywhere."""

    def read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Nerfstudio, "_load_3D_points", read)
    data = shutil.copytree(capture, tmp_path / "data")
    transforms = json.loads((data / "transforms.json").read_text())
    (data / "transforms.json").write_text(json.dumps(transforms | {"ply_file_path": "points.ply"}))
    copy = shutil.copytree(splat_run, tmp_path / "scene" / "splatfacto" / "copy")
    text = (copy / "config.yml").read_text()
    assert "load_3D_points: false" in text
    (copy / "config.yml").write_text(text.replace("load_3D_points: false", "load_3D_points: true"))
    render_held_out(copy, tmp_path / "held_out", data)
    run(splat_edit(copy, data=data, max_num_iterations=1))


def test_checkpoint_holds_the_gaussians_and_two_moments(splat_edit):
    config = splat_edit(max_num_iterations=2)
    run(config)
    (path,) = (config.get_base_dir() / "nerfstudio_models").glob("*.ckpt")
    numbers = sum(values.numel() for values in gaussians(config.get_base_dir()).values())
    assert path.stat().st_size < 3 * 4 * numbers + 40_000


def test_another_degree_of_harmonics_is_told(splat_edit, splat_run, tmp_path):
    copy = shutil.copytree(splat_run, tmp_path / "scene" / "splatfacto" / "copy")
    text = (copy / "config.yml").read_text()
    (copy / "config.yml").write_text(text.replace("sh_degree: 2", "sh_degree: 1"))
    with pytest.raises(BaseException, match=r"features_rest is \[\d+, 8, 3\], the model's is \[\d+, 3, 3\]"):
        run(splat_edit(copy))


def test_truncated_checkpoint_is_told(splat_edit, splat_run, tmp_path):
    copy = shutil.copytree(splat_run, tmp_path / "scene" / "splatfacto" / "copy")
    (path,) = (copy / "nerfstudio_models").glob("*.ckpt")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BaseException, match="cannot be read"):
        run(splat_edit(copy))


def test_antialiased_source_with_bilateral_grids_and_poses_keeps_them(capture, diffusion_folder, tmp_path):
    """What an edit would hide in stays as it is; training views have it, and frames have not."""
    source = train_splat_source(
        capture,
        tmp_path / "source",
        rasterize_mode="antialiased",
        use_bilateral_grid=True,
        use_scale_regularization=True,
        max_gauss_ratio=1.0,
        camera_optimizer__mode="SO3xR3",
    )
    config = edit_config_for(source, diffusion_folder, tmp_path / "outputs")
    pipeline = run(config).pipeline
    assert isinstance(pipeline, CDSPipeline)
    before, after = load_checkpoint(source)["pipeline"], load_checkpoint(config.get_base_dir())["pipeline"]
    held = {key for key in before if "bil_grids" in key or "camera_optimizer" in key}
    assert held
    assert all(torch.equal(before[key], after[key]) for key in held)
    _, losses = pipeline.render_view(0, seed=0)
    assert losses["scale_reg"] > 0

    model = pipeline.model.eval()
    with torch.no_grad():
        model.bil_grids.grids.mul_(0.5)
        dark, _ = pipeline.render_view(1, seed=0)
        frame = pipeline.render_frame(1)
        model.bil_grids.grids.mul_(2)
        torch.testing.assert_close(pipeline.render_view(1, seed=0)[0], 2 * dark)
        assert torch.equal(pipeline.render_frame(1), frame)


@pytest.mark.parametrize("name", ["rays_per_chunk", "held_rays"])
def test_settings_of_rays_are_refused(splat_edit, name):
    with pytest.raises(BaseException, match=rf"--pipeline\.{name.replace('_', '-')} does nothing in an edit of splats"):
        run(splat_edit(**{f"pipeline__{name}": 512}))


def test_other_methods_on_whole_images_are_refused_by_name(splat_edit, splat_run, tmp_path):
    copy = shutil.copytree(splat_run, tmp_path / "scene" / "splatfacto" / "copy")
    text = (copy / "config.yml").read_text()
    (copy / "config.yml").write_text(
        text.replace("nerfstudio.models.splatfacto.SplatfactoModelConfig", "nerfstudio.models.base_model.ModelConfig")
    )
    with pytest.raises(BaseException, match=r"splatfacto run, whose ModelConfig cds cannot edit"):
        run(splat_edit(copy))
