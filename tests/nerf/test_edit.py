"""What an edit gives: its checkpoint, its record, and the same field however often it was interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image
from safetensors.torch import load_file
from small_edit import (
    SMALL_MODEL,
    TARGET_PROMPT,
    VIEWS,
    fresh,
    load_checkpoint,
    paint_left_half,
    run,
    train_source,
    write_capture,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cds_nerf import CDSGuidance, LatentDiffusion
from cds_nerf.errors import Interrupted
from cds_nerf.nerf.method import cds_source
from cds_nerf.nerf.pipeline import CDSPipeline

TRAINING_VIEWS = VIEWS
"""Of so few frames nerfstudio keeps none for evaluation."""


def assert_equal_states(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_states(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_states(a, b)
    else:
        assert one == other


def source_latents(folder: Path) -> dict[str, Any]:
    return {path.name: load_file(path) for path in sorted((folder / "source" / "latents").glob("*"))}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The edit stops within that step, as Ctrl-C would stop it."""
    get_train_loss_dict = CDSPipeline.get_train_loss_dict

    def interrupted(pipeline: CDSPipeline, step_: int | None = None, **kwargs: Any) -> Any:
        if kwargs.get("step", step_) == step:
            raise KeyboardInterrupt
        return get_train_loss_dict(pipeline, kwargs.get("step", step_))

    monkeypatch.setattr(CDSPipeline, "get_train_loss_dict", interrupted)


@pytest.mark.quick
def test_edit_changes_the_field_and_nothing_else(edit_config, source_run):
    config = edit_config()
    run(config)
    before, after = load_checkpoint(source_run)["pipeline"], load_checkpoint(config.get_base_dir())["pipeline"]
    assert before.keys() == after.keys()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert any(key.startswith("_model.field.") for key in changed)
    assert any(key.startswith("_model.proposal_networks.") for key in changed)
    assert not any(key.startswith("_model.camera_optimizer.") for key in changed)


def test_run_folder_holds_the_record_of_the_edit(edit_config, capsys):
    config = edit_config(pipeline__steps_per_strip=2, max_num_iterations=4, pipeline__orbit_frames=3)
    run(config)
    folder = config.get_base_dir()

    source = Image.open(folder / "source" / "views" / "00000.png")
    assert min(source.size) == config.pipeline.guidance_resolution
    assert len(list((folder / "edited_views").glob("*.png"))) == TRAINING_VIEWS
    assert Image.open(folder / "edited_views" / "00000.png").size == source.size
    strips = sorted((folder / "strips").glob("*"))
    assert [strip.name for strip in strips] == ["000000.png", "000002.png", "000003.png"]
    assert Image.open(strips[0]).size == (3 * source.width, source.height)
    with av.open(str(folder / "before_after.mp4")) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 3
    assert (frames[0].width, frames[0].height) == (2 * source.width, source.height)
    events = EventAccumulator(str(folder)).Reload()
    terms = ("dds_loss", "cut_loss", "keep_loss", "interlevel_loss", "distortion_loss")
    assert {f"Train Loss Dict/{term}" for term in terms} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("Train Loss Dict/dds_loss")) == 4
    assert [image.step for image in events.Images("source | edit | gradient")] == [0, 2, 3]
    printed = capsys.readouterr()
    assert f"ns-viewer --load-config {folder / 'config.yml'}" in printed.out.replace("\n", "")
    assert "dds=" in printed.err and "cut=" in printed.err and "interlevel=" in printed.err


@pytest.mark.quick
def test_edit_acts_where_the_relevance_is_painted_white_alone(edit_config):
    config = edit_config(max_num_iterations=1, pipeline__held_rays=0)  # whose gradients are there before the losses
    pipeline = run(config).pipeline
    folder = config.get_base_dir() / "source" / "relevance"
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == TRAINING_VIEWS

    def gradient() -> float:
        pipeline.zero_grad()
        _, losses, _ = pipeline.get_train_loss_dict(step=0)
        (losses["dds_loss"] + losses["cut_loss"]).backward()
        return sum(float(p.grad.abs().sum()) for p in pipeline.model.field.parameters() if p.grad is not None)

    assert gradient() > 0
    for picture in pictures:
        Image.new("L", Image.open(picture).size, 0).save(picture)
    assert gradient() == 0


def test_guidance_pulls_at_no_pixel_outside_of_what_is_painted_white(edit_config, monkeypatch):
    config = edit_config(max_num_iterations=1)
    pipeline = run(config).pipeline
    paint_left_half(config.get_base_dir() / "source" / "relevance")
    image, regularisers = pipeline.render_view(pipeline.datamanager.next_view(0, pipeline.seed), seed=0)
    image.retain_grad()
    monkeypatch.setattr(pipeline, "render_view", lambda index, seed: (image, regularisers))
    _, losses, _ = pipeline.get_train_loss_dict(step=0)
    assert losses["keep_loss"] > 0
    (losses["dds_loss"] + losses["cut_loss"]).backward()
    left, right = image.grad.tensor_split(2, dim=2)
    assert left.abs().sum() > 0 and right.abs().sum() == 0


def test_step_takes_the_mean_over_its_draws(edit_config, monkeypatch):
    config = edit_config(max_num_iterations=1)
    config.pipeline.draws_per_view = 3
    pipeline = run(config).pipeline
    calls, call = [], CDSGuidance.__call__

    def spy(self, source_latents, target_latents, *args, **kwargs):
        calls.append((target_latents, call(self, source_latents, target_latents, *args, **kwargs)))
        return calls[-1][1]

    monkeypatch.setattr(CDSGuidance, "__call__", spy)
    _, losses, _ = pipeline.get_train_loss_dict(step=0)
    ((latents, out),) = calls
    assert len(out.timestep) == 3 and len(set(out.timestep.tolist())) > 1
    expected = (2000 * latents * out.gradient / latents[0, 0].numel()).sum(dim=(1, 2, 3)).mean()
    assert losses["dds_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["cut_loss"].item() == pytest.approx(
        config.pipeline.guidance.w_cut * out.cut_loss.item() / 3, rel=1e-4
    )


def test_weight_0_keeps_nothing_and_acts_anywhere(edit_config):
    config = edit_config(max_num_iterations=1)
    config.pipeline.w_keep = 0
    pipeline = run(config).pipeline
    assert not list((config.get_base_dir() / "source" / "relevance").glob("*"))
    _, losses, _ = pipeline.get_train_loss_dict(step=0)
    assert "keep_loss" not in losses
    losses["dds_loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in pipeline.model.field.parameters())


def test_edited_run_opens_with_its_config_alone_and_shows_another_scene(edit_config, source_run):
    config = edit_config()
    run(config)
    colors = []
    for folder in (source_run, config.get_base_dir()):
        _, pipeline, _, _ = eval_setup(folder / "config.yml", test_mode="inference")
        camera = pipeline.datamanager.train_dataset.cameras[0:1]
        colors.append(pipeline.model.get_outputs_for_camera(camera)["rgb"])
    assert (colors[0] - colors[1]).abs().max() > 1e-4


def test_checkpoint_is_no_larger_than_its_source(edit_config, source_run):
    config = edit_config()
    run(config)
    (edited,) = (config.get_base_dir() / "nerfstudio_models").glob("*.ckpt")
    (source,) = (source_run / "nerfstudio_models").glob("*.ckpt")
    assert edited.stat().st_size <= source.stat().st_size


def test_edit_reads_no_photograph(edit_config, monkeypatch):
    def read(*_: Any) -> None:
        raise AssertionError("a photograph was read")

    monkeypatch.setattr(InputDataset, "get_numpy_image", read)
    run(edit_config())


def test_capture_of_grey_fisheye_photographs_with_masks_is_edited(edit_config, tmp_path):
    capture = write_capture(tmp_path / "grey fish", camera_model="OPENCV_FISHEYE", mode="L", masks=True)
    source = train_source(fresh(cds_source.config), capture, tmp_path / "source")
    config = edit_config(load_dir=source)
    run(config)
    assert len(list((config.get_base_dir() / "edited_views").glob("*.png"))) == TRAINING_VIEWS
    assert all(value.isfinite().all() for value in load_checkpoint(config.get_base_dir())["pipeline"].values())


def test_capture_of_a_single_photograph_is_edited(edit_config, tmp_path):
    capture = write_capture(tmp_path / "scene", views=1)
    config = fresh(cds_source.config)
    parser = config.pipeline.datamanager.dataparser
    parser.center_method, parser.orientation_method, parser.auto_scale_poses = "none", "none", False
    edit = edit_config(load_dir=train_source(config, capture, tmp_path / "source"))
    run(edit)
    assert (edit.get_base_dir() / "before_after.mp4").exists()
    assert all(value.isfinite().all() for value in load_checkpoint(edit.get_base_dir())["pipeline"].values())


def test_field_of_another_method_whose_grids_grow_is_edited(edit_config, capture, tmp_path):
    config = fresh(method_configs["tensorf"])
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    small = {"init_resolution": 8, "final_resolution": 12, "upsampling_iters": (2, 3), "num_samples": 8}
    small |= {"num_uniform_samples": 8, "num_den_components": 2, "num_color_components": 2, "appearance_dim": 4}
    source = train_source(config, capture, tmp_path / "source", **small)
    edit = edit_config(load_dir=source, max_num_iterations=4)
    run(edit)
    before, after = load_checkpoint(source)["pipeline"], load_checkpoint(edit.get_base_dir())["pipeline"]
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert "_model.field.density_encoding.plane_coef" in changed
    eval_setup(edit.get_base_dir() / "config.yml", test_mode="inference")


def test_model_is_built_as_in_the_source_run(edit_config):
    config = edit_config(pipeline__model__eval_num_rays_per_chunk=77)
    config.set_timestamp()
    for name, value in SMALL_MODEL.items():
        assert getattr(config.pipeline.model, name) == value
    assert config.pipeline.model.use_appearance_embedding is False
    assert config.pipeline.model.eval_num_rays_per_chunk == 77


def test_prompt_is_the_target_prompt(edit_config):
    config = edit_config()
    config.set_timestamp()
    assert config.pipeline.target_prompt == TARGET_PROMPT
    same = edit_config(prompt=None, pipeline__target_prompt=TARGET_PROMPT)
    same.set_timestamp()
    assert same.pipeline.target_prompt == TARGET_PROMPT


@pytest.mark.parametrize("part", ["", "nerfstudio_models/step-000000004.ckpt"])
def test_run_folder_or_checkpoint_serves_as_load_dir_too(edit_config, source_run, part):
    config = edit_config(load_dir=source_run / part)
    config.set_timestamp()
    assert config.pipeline.source_checkpoint == source_run / "nerfstudio_models" / "step-000000004.ckpt"


def test_learning_rate_decays_over_the_steps_of_the_edit(edit_config):
    config = edit_config(max_num_iterations=4)
    trainer = run(config)
    optimizer = config.optimizers["fields"]
    rate = trainer.optimizers.optimizers["fields"].param_groups[0]["lr"]
    assert rate == pytest.approx(optimizer["scheduler"].lr_final)
    assert optimizer["scheduler"].lr_final < optimizer["optimizer"].lr


def test_annealing_of_the_proposal_weights_is_over(edit_config):
    trainer = run(edit_config())
    assert trainer.pipeline.model.proposal_sampler._anneal == pytest.approx(1)


def test_every_view_comes_once_before_any_comes_twice(edit_config):
    datamanager = run(edit_config()).pipeline.datamanager
    views = [datamanager.next_view(step, seed=0) for step in range(3 * TRAINING_VIEWS)]
    passes = [views[start : start + TRAINING_VIEWS] for start in range(0, len(views), TRAINING_VIEWS)]
    assert all(sorted(one) == list(range(TRAINING_VIEWS)) for one in passes)
    assert passes[0] != passes[1]


def test_same_seed_gives_the_same_field_and_another_seed_another(edit_config):
    fields = []
    for number, seed in enumerate((1, 1, 2)):
        config = edit_config(timestamp=f"run{number}", machine__seed=seed)
        run(config)
        fields.append(load_checkpoint(config.get_base_dir())["pipeline"]["_model.field.mlp_head.layers.0.weight"])
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


@pytest.mark.parametrize("settings", [{"pipeline__guidance_dtype": "bfloat16"}, {"pipeline__guidance__w_cut": 0.0}])
def test_settings_of_the_guidance_act(edit_config, settings):
    weights = []
    for number, chosen in enumerate(({}, settings)):
        config = edit_config(timestamp=f"run{number}", **chosen)
        run(config)
        weights.append(load_checkpoint(config.get_base_dir())["pipeline"]["_model.field.mlp_head.layers.0.weight"])
    assert not torch.equal(*weights)


@pytest.mark.quick
@pytest.mark.parametrize("interrupted_at", [0, 1, 3])
def test_resumed_edit_equals_uninterrupted(edit_config, monkeypatch, interrupted_at):
    whole = edit_config(timestamp="whole", max_num_iterations=5)
    run(whole)

    broken = edit_config(timestamp="broken", max_num_iterations=5, steps_per_save=2)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"interrupted; .*--pipeline\.resume-from"):
        interrupt_at(patch, interrupted_at)
        run(broken)
    folder = broken.get_base_dir()
    resumed = edit_config(pipeline__resume_from=folder)
    run(resumed)
    assert resumed.get_base_dir() == folder
    assert_equal_states(load_checkpoint(folder), load_checkpoint(whole.get_base_dir()))
    assert_equal_states(*(source_latents(c.get_base_dir()) for c in (whole, resumed)))


def test_finished_edit_can_be_taken_further(edit_config):
    config = edit_config(max_num_iterations=2)
    run(config)
    longer = edit_config(max_num_iterations=4, pipeline__resume_from=config.get_base_dir())
    assert run(longer).step == 3
    assert load_checkpoint(config.get_base_dir())["step"] == 3


def test_source_views_that_were_cut_short_are_completed(edit_config, monkeypatch):
    whole, broken = edit_config(timestamp="whole"), edit_config(timestamp="broken")
    run(whole)
    encode, calls = LatentDiffusion.encode, []

    def interrupted(diffusion: LatentDiffusion, images: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(diffusion, images)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(LatentDiffusion, "encode", interrupted)
        run(broken)
    folder = broken.get_base_dir()
    assert len(source_latents(folder)) == 2
    run(edit_config(pipeline__resume_from=folder))
    assert_equal_states(*(source_latents(c.get_base_dir()) for c in (whole, broken)))
    assert_equal_states(*(load_checkpoint(c.get_base_dir()) for c in (whole, broken)))


@pytest.mark.parametrize("lost", ["", "views", "latents/00003.safetensors", "relevance/00001.png", "measured/auto"])
def test_lost_source_views_are_made_from_the_source_and_not_from_the_edit(edit_config, monkeypatch, lost):
    whole, broken = edit_config(timestamp="whole", steps_per_save=1), edit_config(timestamp="broken", steps_per_save=1)
    run(whole)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, step=2)
        run(broken)
    path = broken.get_base_dir() / "source" / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    run(edit_config(pipeline__resume_from=broken.get_base_dir()))
    assert_equal_states(*(load_checkpoint(c.get_base_dir()) for c in (whole, broken)))
    assert_equal_states(*(source_latents(c.get_base_dir()) for c in (whole, broken)))
    made = list((broken.get_base_dir() / "source").glob("*/*.png"))
    assert len(made) > TRAINING_VIEWS
    for picture in made:
        assert picture.read_bytes() == (whole.get_base_dir() / picture.relative_to(broken.get_base_dir())).read_bytes()


def test_record_that_was_cut_short_is_made_again(edit_config, monkeypatch):
    whole, broken = edit_config(timestamp="whole"), edit_config(timestamp="broken")
    run(whole)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(CDSPipeline, "render_frame", interrupted_orbit())
        run(broken)
    folder = broken.get_base_dir()
    assert not (folder / "before_after.mp4").exists()
    run(edit_config(pipeline__resume_from=folder))
    assert_equal_states(load_checkpoint(folder), load_checkpoint(whole.get_base_dir()))
    kinds = ("edited_views/*.png", "strips/*.png", "source/**/*.png", "*.mp4")
    made = [
        {
            path.relative_to(c.get_base_dir()): path.read_bytes()
            for kind in kinds
            for path in c.get_base_dir().glob(kind)
        }
        for c in (whole, broken)
    ]
    assert made[0] == made[1]
    assert len(made[0]) > TRAINING_VIEWS


def interrupted_orbit() -> Any:
    """The orbit of the edit is interrupted at its second frame."""
    render_frame = CDSPipeline.render_frame

    def render(pipeline: CDSPipeline, index: int) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return render_frame(pipeline, index)

    return render


@pytest.mark.parametrize("part", ["nerfstudio_models", "config.yml", "nerfstudio_models/step-000000002.ckpt"])
def test_edit_is_resumed_by_what_is_in_its_folder_too(edit_config, part):
    config = edit_config()
    run(config)
    resumed = edit_config(pipeline__resume_from=config.get_base_dir() / part)
    resumed.set_timestamp()
    assert resumed.get_base_dir() == config.get_base_dir()


def test_failed_checkpoint_leaves_the_last_one(edit_config, monkeypatch):
    trainer = run(edit_config())
    (good,) = trainer.checkpoint_dir.glob("*.ckpt")

    def fail(state: Any, path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        trainer.save_checkpoint(7)
    monkeypatch.undo()
    assert list(trainer.checkpoint_dir.iterdir()) == [good]
    trainer.config.save_only_latest_checkpoint = False
    trainer.save_checkpoint(8)
    assert sorted(trainer.checkpoint_dir.iterdir()) == [good, good.with_name("step-000000008.ckpt")]
    trainer.config.save_only_latest_checkpoint = True
    trainer.save_checkpoint(9)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000009.ckpt"]


def test_all_checkpoints_stay_where_they_are_wanted(edit_config):
    config = edit_config(max_num_iterations=5, steps_per_save=2, save_only_latest_checkpoint=False)
    run(config)
    names = sorted(path.name for path in (config.get_base_dir() / "nerfstudio_models").iterdir())
    assert names == [f"step-{step:09d}.ckpt" for step in (2, 4)]


def test_finished_edit_can_be_edited_again(edit_config):
    first = edit_config(timestamp="first")
    run(first)
    second = edit_config(timestamp="second", load_dir=first.get_base_dir(), prompt="a photo of a bear")
    second.set_timestamp()
    trainer = second.setup()
    trainer.setup()
    assert trainer._start_step == 0
    assert_equal_states(dict(trainer.pipeline.state_dict()), dict(load_checkpoint(first.get_base_dir())["pipeline"]))


def test_moved_run_resumes_in_its_new_place(edit_config, tmp_path):
    config = edit_config(max_num_iterations=2)
    run(config)
    moved = tmp_path / "elsewhere" / "scene" / "cds" / "renamed"
    moved.parent.mkdir(parents=True)
    shutil.move(config.get_base_dir(), moved)
    longer = edit_config(max_num_iterations=3, pipeline__resume_from=moved)
    run(longer)
    assert load_checkpoint(moved)["step"] == 2
    eval_setup(moved / "config.yml", test_mode="inference")
