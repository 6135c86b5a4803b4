"""Runs as people have them: of several devices, other systems and versions, seen from anywhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import fresh, load_checkpoint, run, train_source
from test_edit import assert_equal_states

from cds_nerf.errors import UserError
from cds_nerf.nerf.held_out import render_held_out
from cds_nerf.nerf.method import cds_source
from cds_nerf.nerf.source_run import OLD_POSES, POSES, SourceRun, find_data, read_run_config


@pytest.fixture
def run_copy(source_run, tmp_path) -> Path:
    """The source run, for a test to make another of."""
    return Path(shutil.copytree(source_run, tmp_path / "runs" / "scene" / "cds-source" / "time"))


def edited(config) -> dict:
    """The checkpoint of an edit, which opens with nerfstudio's own loader and gives held-out pictures."""
    run(config)
    folder = config.get_base_dir()
    _, pipeline, _, _ = eval_setup(folder / "config.yml", test_mode="inference")
    assert pipeline.config.model.num_levels == 4
    render_held_out(folder, folder.parent / "held out")
    return load_checkpoint(folder)


def rewrite_checkpoint(folder: Path, change) -> None:
    (path,) = (folder / "nerfstudio_models").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["pipeline"] = change(checkpoint["pipeline"])
    torch.save(checkpoint, path)


def rewrite_config(folder: Path, change) -> None:
    path = folder / "config.yml"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))


@pytest.mark.parametrize("prefix", ["_model.module.", "module._model.", "module._model.module."])
def test_field_of_several_devices_is_edited_as_that_of_one(edit_config, source_run, run_copy, prefix):
    rewrite_checkpoint(run_copy, lambda state: {key.replace("_model.", prefix, 1): state[key] for key in state})
    states = [edited(edit_config(load_dir=source, timestamp=source.parts[-4])) for source in (source_run, run_copy)]
    assert_equal_states(*states)
    render_held_out(run_copy, run_copy.parent / "source pictures")


def test_poses_of_older_versions_are_the_models(edit_config, run_copy):
    poses = torch.rand(7, 6) / 100
    old = {"datamanager.train_ray_generator.image_coords": torch.zeros(24, 40, 2), OLD_POSES: poses}
    rewrite_checkpoint(run_copy, lambda state: {key: state[key] for key in state if key != POSES} | old)
    assert torch.equal(edited(edit_config(load_dir=run_copy))["pipeline"][POSES], poses)


def test_field_without_poses_is_edited(edit_config, run_copy):
    rewrite_checkpoint(run_copy, lambda state: {key: state[key] for key in state if key != POSES})
    assert POSES not in edited(edit_config(load_dir=run_copy))["pipeline"]


def as_on_windows(text: str) -> str:
    return text.replace("pathlib.PosixPath", "pathlib.WindowsPath")


def without(*names: str):
    """Makes a configuration without some of its blocks, as older versions wrote it."""

    def change(text: str) -> str:
        config = yaml.load(text, Loader=yaml.Loader)
        for name in names:
            *parents, last = name.split(".")
            part = config
            for parent in parents:
                part = getattr(part, parent)
            delattr(part, last)
        return yaml.dump(config)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("pathlib.PosixPath", "pathlib._local.PosixPath"),
        lambda text: as_on_windows(text).replace("pathlib.", "pathlib._local."),
        as_on_windows,
        without("viewer", "logging", "machine", "optimizers", "start_paused"),
        lambda text: text.replace("PixelSamplerConfig", "OldConfig").replace("EventName\n", "OldEventName\n"),
        without("pipeline.model.camera_optimizer", "pipeline.model.average_init_density", "pipeline.model._target"),
        without("pipeline.datamanager.pixel_sampler", "pipeline.datamanager.camera_res_scale_factor"),
        without("pipeline.datamanager.dataparser.eval_mode", "pipeline.datamanager.dataparser.load_3D_points"),
        lambda text: text.replace("vis: tensorboard", "vis: tensorboard\ntrainer: {steps: 3}\nenable_viewer: true"),
    ],
)
def test_run_of_another_system_or_version_is_edited(edit_config, capture, run_copy, change):
    rewrite_config(run_copy, change)
    edited(edit_config(load_dir=run_copy, data=capture))


def test_settings_that_are_left_out_are_said(run_copy, capsys):
    rewrite_config(run_copy, lambda text: text.replace("num_levels: 4", "num_levels: 4\n    warp_speed: 9"))
    read_run_config(run_copy)
    assert "NerfactoModelConfig.warp_speed" in "".join(capsys.readouterr().out.split())


def test_edit_of_another_version_is_not_resumed(edit_config):
    config = edit_config()
    run(config)
    rewrite_config(config.get_base_dir(), lambda text: text.replace("w_keep: 1.0", "w_keep: 1.0\n  w_magic: 2.0"))
    with pytest.raises(UserError, match=r"config\.yml was written by other versions.*CDSPipelineConfig\.w_magic"):
        run(edit_config(pipeline__resume_from=config.get_base_dir()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("NerfactoModelConfig", "OlderModelConfig"),
            r"no pipeline\.model, but .*OlderModelConfig",
        ),
        (lambda _: "!!python/object:nerfstudio.engine.trainer.TrainerConfig {pipeline: 3}", r"no pipeline, but int"),
        (
            lambda text: text.replace("camera_optimizers.CameraOptimizerConfig", "camera_optimizers.OldConfig"),
            r"pipeline\.model with .*OldConfig",
        ),
        (
            lambda text: text.replace("NerfstudioDataParserConfig", "OldParserConfig"),
            r"pipeline\.datamanager\.dataparser with .*OldParserConfig",
        ),
        (
            lambda _: "!!python/object:nerfstudio.configs.base_config.Config {}",
            r"is not the .*, but .*base_config\.Config",
        ),
        (lambda _: "a: 1", "is not the configuration of a nerfstudio run"),
        (lambda _: "", "is not the configuration of a nerfstudio run"),
    ],
)
def test_configuration_of_no_use_is_named(edit_config, run_copy, change, message):
    rewrite_config(run_copy, change)
    with pytest.raises(UserError, match=rf"config\.yml .*{message}"):
        run(edit_config(load_dir=run_copy))


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        ("nerfstudio_models", "."),
        ("nerfstudio_models", ".."),
        ("nerfstudio_models", "step-000000004.ckpt"),
        ("nerfstudio_models", "./step-000000004.ckpt"),
        (".", "."),
        (".", "./nerfstudio_models/"),
        (".", "config.yml"),
        ("..", "time"),
        ("..", "time/nerfstudio_models/../"),
        ("..", "link"),
        ("..", "to models"),
        ("..", "to checkpoint"),
        ("/", "~/home link/nerfstudio_models"),
    ],
)
def test_run_is_found_by_whatever_leads_to_it(run_copy, monkeypatch, folder, place):
    run_copy.with_name("link").symlink_to(run_copy)
    run_copy.with_name("home link").symlink_to("time")
    run_copy.with_name("to models").symlink_to("time/nerfstudio_models")
    run_copy.with_name("to checkpoint").symlink_to(run_copy / "nerfstudio_models" / "step-000000004.ckpt")
    monkeypatch.setenv("HOME", str(run_copy.parent))
    monkeypatch.chdir(run_copy / folder)
    found = SourceRun.find(Path(place))
    assert found.directory.samefile(run_copy)
    assert found.checkpoint.samefile(run_copy / "nerfstudio_models" / "step-000000004.ckpt")
    assert found.checkpoint.is_absolute()


def test_checkpoints_that_lie_on_another_disk_are_found(run_copy, tmp_path):
    models = Path(shutil.move(run_copy / "nerfstudio_models", tmp_path / "disk"))
    (run_copy / "nerfstudio_models").symlink_to(models)
    for place in (run_copy, run_copy / "nerfstudio_models", run_copy / "nerfstudio_models" / "step-000000004.ckpt"):
        assert SourceRun.find(place).directory == run_copy


def test_data_that_was_given_relative_is_seen_from_where_the_run_was_started(
    capture, edit_config, tmp_path, monkeypatch
):
    project = tmp_path / "project"
    shutil.copytree(capture, project / "data" / "fox")
    monkeypatch.chdir(project)
    source = project / train_source(fresh(cds_source.config), Path("data/fox"), Path("outputs"))
    assert not read_run_config(source).pipeline.datamanager.data.is_absolute()
    monkeypatch.chdir(tmp_path)
    edited(edit_config(load_dir=source))
    moved = project.rename(tmp_path / "moved project")
    source = moved / source.relative_to(project)
    assert find_data(read_run_config(source), source) == moved / "data" / "fox"

    (moved / "data").rename(moved / "elsewhere")
    both = f"data/fox or {moved}/data/fox of {source}"
    with pytest.raises(UserError, match=re.escape(f"the data {both} is not there: give --data")):
        find_data(read_run_config(source), source)
