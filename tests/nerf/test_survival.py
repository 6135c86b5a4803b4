"""What happens to an edit on its way: numbers that are not finite, signals, a second start, too little memory."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_edit import VIEWS, edit_config_for, fresh, load_checkpoint, run, train_source
from test_edit import assert_equal_states
from test_mistakes import message_of

from cds_nerf import CDSGuidance, LatentDiffusion
from cds_nerf.errors import Interrupted, Terminated, UserError
from cds_nerf.fields.ray_field import RayField
from cds_nerf.files import write_failure
from cds_nerf.guidance import CDSGuidanceConfig
from cds_nerf.nerf import finite_steps
from cds_nerf.nerf import pipeline as pipeline_module
from cds_nerf.nerf.datamanager import CDSDataManager
from cds_nerf.nerf.edit_renders import EditRenders
from cds_nerf.nerf.method import cds_source
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.safe_trainer import SafeTrainer
from cds_nerf.nerf.trainer import CDSTrainerConfig

Losses = dict[str, torch.Tensor]


def in_step(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[int], bool], act: Callable[[Losses], object]) -> None:
    """Do something with the losses of the chosen steps."""
    get_train_loss_dict = CDSPipeline.get_train_loss_dict

    def step_with_act(pipeline: CDSPipeline, step: int) -> Any:
        outputs = get_train_loss_dict(pipeline, step)
        if chosen(step):
            act(outputs[1])
        return outputs

    monkeypatch.setattr(CDSPipeline, "get_train_loss_dict", step_with_act)


class FlawedGradient(torch.autograd.Function):
    """A finite loss with a gradient that is not."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.full_like(gradient, torch.inf)


def flawed_loss(patch: pytest.MonkeyPatch, chosen: Callable[[int], bool]) -> None:
    render_view, steps = CDSPipeline.render_view, iter(range(1000))

    def render(pipeline: CDSPipeline, index: int, seed: int) -> Any:
        image, losses = render_view(pipeline, index, seed)
        if torch.is_grad_enabled() and chosen(next(steps)):
            losses["distortion_loss"] = losses["distortion_loss"] * torch.nan
        return image, losses

    patch.setattr(CDSPipeline, "render_view", render)


def flawed_guidance(patch: pytest.MonkeyPatch, chosen: Callable[[int], bool]) -> None:
    call = CDSGuidance.__call__

    def overflow(guidance: CDSGuidance, source: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if target.any() and "step" in kwargs and chosen(kwargs["step"]):  # no trial on empty latents
            guidance.strengths.add(torch.ones_like(target), torch.ones_like(target))
            raise FloatingPointError("the guidance's gradient is not finite in torch.float16")
        return call(guidance, source, target, *args, **kwargs)

    patch.setattr(CDSGuidance, "__call__", overflow)


def flawed_gradient(patch: pytest.MonkeyPatch, chosen: Callable[[int], bool]) -> None:
    in_step(patch, chosen, lambda losses: losses.update(keep_loss=FlawedGradient.apply(losses["keep_loss"])))


def flawed_step(patch: pytest.MonkeyPatch, chosen: Callable[[int], bool]) -> None:
    make_step, groups, calls = torch.optim.Adam.step, 2, iter(range(1000))

    def step(optimizer: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        result = make_step(optimizer, *args, **kwargs)
        if chosen(next(calls) // groups):  # a group before it was stepped well
            optimizer.param_groups[0]["params"][-1].data.flatten()[0] = torch.nan
        return result

    patch.setattr(torch.optim.Adam, "step", step)


FLAWS = {
    "loss": (flawed_loss, "the loss is not finite: .*distortion_loss nan"),
    "guidance": (flawed_guidance, "the guidance's gradient is not finite in torch.float16"),
    "gradient": (flawed_gradient, "the gradient of the field is not finite"),
    "optimiser": (flawed_step, "the optimiser's step is not finite"),
}


@pytest.fixture(scope="module")
def without_step_1(source_run, diffusion_folder, tmp_path_factory) -> dict[str, Any]:
    """The end of an edit of four steps of which the second was never made."""
    config = edit_config_for(source_run, diffusion_folder, tmp_path_factory.mktemp("without"), **FOUR_STEPS)
    with pytest.MonkeyPatch.context() as patch:
        train_iteration = SafeTrainer.train_iteration

        def iterate(trainer: SafeTrainer, step: int) -> Any:
            return (torch.tensor(0.0), {}, {}) if step == 1 else train_iteration(trainer, step)

        patch.setattr(SafeTrainer, "train_iteration", iterate)
        run(config)
    return load_checkpoint(config.get_base_dir())


FOUR_STEPS = {"max_num_iterations": 4, "steps_per_save": 1, "pipeline__guidance": CDSGuidanceConfig(relative_w_cut=0.5)}


@pytest.mark.parametrize(("flaw", "reason"), FLAWS.values(), ids=FLAWS)
def test_step_that_is_not_finite_is_left_out_and_told(edit_config, monkeypatch, capsys, without_step_1, flaw, reason):
    flaw(monkeypatch, lambda step: step == 1)
    config = edit_config(**FOUR_STEPS)
    run(config)
    assert_equal_states(load_checkpoint(config.get_base_dir()), without_step_1)
    printed = capsys.readouterr()
    told = " ".join(printed.out.split())
    assert re.search(rf"Steps that were left out: 1; the last, step 1, as {reason}", told), told
    assert "skipped=1" in printed.err


@pytest.mark.parametrize(("flaw", "reason"), FLAWS.values(), ids=FLAWS)
def test_many_steps_in_a_row_that_are_not_finite_end_the_edit(edit_config, monkeypatch, flaw, reason):
    monkeypatch.setattr(finite_steps, "SKIPPED_IN_A_ROW", 3)
    flaw(monkeypatch, lambda step: step >= 2)
    config = edit_config(max_num_iterations=9, steps_per_save=1)
    message = message_of(config)
    assert re.search(
        rf"^3 steps in a row were left out, the last as {reason}.*; the edit goes on from its last ", message
    )
    assert f"--pipeline.resume-from {config.get_base_dir()} --pipeline.guidance-dtype float32" in message
    assert re.search(r"smaller --optimizers\.fields\.optimizer\.lr or another --pipeline\.guidance-resolution", message)
    checkpoint = load_checkpoint(config.get_base_dir())
    assert checkpoint["step"] == 1
    assert all(value.isfinite().all() for value in checkpoint["pipeline"].values())
    monkeypatch.undo()
    run(edit_config(pipeline__resume_from=config.get_base_dir(), max_num_iterations=3))
    assert load_checkpoint(config.get_base_dir())["step"] == 2


def test_edit_whose_steps_are_all_not_finite_does_not_pass_for_done(edit_config, monkeypatch):
    flawed_guidance(monkeypatch, lambda step: True)
    config = edit_config()
    assert "3 steps in a row were left out" in message_of(config)
    assert not (config.get_base_dir() / "nerfstudio_models").exists()


def test_field_that_is_not_finite_is_never_saved(edit_config):
    trainer = run(edit_config())
    (good,) = trainer.checkpoint_dir.iterdir()
    before = good.read_bytes()
    next(trainer.pipeline.model.field.parameters()).data.flatten()[0] = torch.inf
    with pytest.raises(FloatingPointError, match="the field is not finite after step 7, and was not saved"):
        trainer.save_checkpoint(7)
    assert list(trainer.checkpoint_dir.iterdir()) == [good] and good.read_bytes() == before


def test_source_that_is_not_finite_is_refused(edit_config, source_run, tmp_path):
    copy = Path(shutil.copytree(source_run, tmp_path / "copy" / "cds-source" / "time"))
    (path,) = (copy / "nerfstudio_models").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["pipeline"]["_model.field.mlp_head.layers.0.weight"][0, 0] = torch.nan
    torch.save(checkpoint, path)
    message = message_of(edit_config(load_dir=copy))
    assert (
        f"{path} holds numbers that are not finite" in message and "choose an earlier one with --load-step" in message
    )


@pytest.mark.parametrize("what", ["colours", "latents", "relevance"])
def test_source_views_that_are_not_finite_are_told_and_not_kept(edit_config, monkeypatch, what):
    kind, part = {
        "colours": (RayField, "render_view"),
        "latents": (LatentDiffusion, "encode"),
        "relevance": (pipeline_module, "relevance_map"),
    }[what]
    made = getattr(kind, part)

    def flawed(*args: Any, **kwargs: Any) -> Any:
        outputs = made(*args, **kwargs)
        return (outputs[0] * torch.nan, outputs[1]) if what == "colours" else outputs * torch.nan

    monkeypatch.setattr(kind, part, flawed)
    config = edit_config()
    told = message_of(config)
    assert re.search(rf"the {what} (of|in) the source's view \d (are|is) not finite; .*guidance-dtype float32", told), (
        told
    )
    kept = {path.parent.name for path in (config.get_base_dir() / "source").rglob("*") if path.is_file()}
    assert not kept & {"colours": {"views", "latents"}, "latents": {"views", "latents"}, "relevance": {"auto"}}[what]


def terminate(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_step(patch: pytest.MonkeyPatch) -> None:
    in_step(patch, lambda step: step == 2, terminate)


def in_the_last_step(patch: pytest.MonkeyPatch) -> None:
    in_step(patch, lambda step: step == 4, terminate)


def before(patch: pytest.MonkeyPatch, where: type, name: str, call: int, ends: signal.Signals = signal.SIGTERM) -> None:
    """A signal comes as a method is called for the n-th time."""
    method, calls = getattr(where, name), iter(range(1000))

    @functools.wraps(method)
    def with_signal(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(ends)
        return method(*args, **kwargs)

    patch.setattr(where, name, with_signal)


def in_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def save_with_signal(state: Any, path: Path) -> None:
        if state["step"] == 2:
            path.write_bytes(b"half")
            terminate()
        save(state, path)

    patch.setattr(torch, "save", save_with_signal)


def while_paused(patch: pytest.MonkeyPatch) -> None:
    train_iteration = SafeTrainer.train_iteration

    def iterate(trainer: SafeTrainer, step: int) -> Any:
        outputs = train_iteration(trainer, step)
        if step == 2:
            trainer.training_state = "paused"
            threading.Timer(0.2, terminate).start()
        return outputs

    patch.setattr(SafeTrainer, "train_iteration", iterate)


MOMENTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int | None]] = {
    "source views": (lambda patch: before(patch, RayField, "render_view", 2), None),
    "a step": (in_a_step, 2),
    "a strip": (lambda patch: before(patch, EditRenders, "write_strip", 1), 2),
    "a checkpoint": (in_a_checkpoint, 2),
    "a pause": (while_paused, 2),
    "the last step": (in_the_last_step, 4),
    "the video": (lambda patch: before(patch, CDSPipeline, "render_frame", 1), 4),
}
"""When SIGTERM comes, and the step that is saved after it."""


@pytest.fixture(scope="module")
def whole(source_run, diffusion_folder, tmp_path_factory) -> Path:
    """The run of an edit of five steps that nothing has interrupted."""
    config = edit_config_for(source_run, diffusion_folder, tmp_path_factory.mktemp("whole"), **FIVE_STEPS)
    run(config)
    return config.get_base_dir()


FIVE_STEPS = {"max_num_iterations": 5, "steps_per_save": 2, "pipeline__steps_per_strip": 2}


@pytest.mark.parametrize(("send", "saved"), MOMENTS.values(), ids=MOMENTS)
def test_edit_that_is_terminated_is_saved_and_goes_on_to_the_same_field(edit_config, monkeypatch, whole, send, saved):
    config = edit_config(**FIVE_STEPS)
    with monkeypatch.context() as patch, pytest.raises(Terminated, match=r"^terminated; the edit goes on from ") as end:
        send(patch)
        run(config)
    assert end.value.status == 143 and f"--pipeline.resume-from {config.get_base_dir()}" in str(end.value)
    folder = config.get_base_dir()
    if saved is None:
        assert not (folder / "nerfstudio_models").exists()
    else:
        assert load_checkpoint(folder)["step"] == saved
    assert not list(folder.rglob(".partial-*"))
    run(edit_config(pipeline__resume_from=folder))
    assert_equal_states(load_checkpoint(folder), load_checkpoint(whole))
    assert pictures(folder) == pictures(whole)


def pictures(folder: Path) -> dict[str, bytes]:
    parts = [folder / part for part in ("source", "strips", "edited_views")]
    paths = [path for part in parts for path in part.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.cuda.OutOfMemoryError("CUDA out of memory")])
def test_step_that_was_done_is_saved_when_the_next_is_broken_off(edit_config, monkeypatch, whole, error):
    config = edit_config(**FIVE_STEPS | {"steps_per_save": 100})

    def fail(_: object) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises((Interrupted, UserError)) as end:
        in_step(patch, lambda step: step == 3, fail)
        run(config)
    folder = config.get_base_dir()
    assert f"--pipeline.resume-from {folder}" in str(end.value)
    assert load_checkpoint(folder)["step"] == 2
    run(edit_config(pipeline__resume_from=folder))
    assert_equal_states(load_checkpoint(folder)["pipeline"], load_checkpoint(whole)["pipeline"])


def test_source_that_is_terminated_is_saved_too(capture, tmp_path, monkeypatch):
    before(monkeypatch, SafeTrainer, "train_iteration", 2)
    with pytest.raises(Terminated) as end:
        train_source(fresh(cds_source.config), capture, tmp_path)
    (path,) = tmp_path.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["step"] == 1
    time = path.parent.parent.name
    assert str(end.value) == (
        "terminated; the training goes on from its last checkpoint by the same command with "
        f"--timestamp {time} --load-dir {path.parent}"
    )


def test_source_that_is_interrupted_says_so_without_a_traceback(capture, tmp_path, monkeypatch):
    """nerfstudio's launcher would answer a KeyboardInterrupt with a traceback and exit status 0."""
    before(monkeypatch, SafeTrainer, "train_iteration", 2, signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^interrupted; it has no checkpoint yet, and begins anew$"):
        train_source(fresh(cds_source.config), capture, tmp_path)


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), {}),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), {}),
        (MemoryError(), {"pipeline__draws_per_view": 2}),
    ],
)
def test_too_little_memory_at_the_first_step_is_answered_with_what_costs_least_first(
    edit_config, monkeypatch, error, settings
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(CDSPipeline, "get_train_loss_dict", fail)
    config = edit_config(**settings)
    draws = ["--pipeline.draws-per-view 1"] if settings else []
    assert message_of(config) == (
        "cpu has too little memory: start again with one or more of these, the first costs least: "
        + ", ".join(
            [
                "--pipeline.encoder-checkpointing True",
                "--pipeline.diffusion-model.gradient-checkpointing True",
                "--pipeline.rays-per-chunk 1024",
                "--pipeline.guidance-dtype bfloat16",
                "--pipeline.diffusion-model.vae-tiling True",
                *draws,
                "a smaller --pipeline.guidance-resolution",
                "--pipeline.guidance.w-cut 0",
            ]
        )
    )


def test_edit_that_ran_out_of_memory_under_way_goes_on_with_less(edit_config, monkeypatch):
    config = edit_config(max_num_iterations=4)

    def fail(_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        in_step(patch, lambda step: step == 2, fail)
        message = message_of(config)
    words = "--pipeline.encoder-checkpointing True --pipeline.diffusion-model.gradient-checkpointing True "
    assert f"goes on at step 2 with: ns-train cds --pipeline.resume-from {config.get_base_dir()} {words}" in message
    assert (
        "a new edit takes less with a smaller --pipeline.guidance-resolution or --pipeline.guidance.w-cut 0" in message
    )
    less = {"pipeline__diffusion_model__gradient_checkpointing": True, "pipeline__rays_per_chunk": 1024}
    less |= {"pipeline__encoder_checkpointing": True}
    run(edit_config(pipeline__resume_from=config.get_base_dir(), **less))
    assert load_checkpoint(config.get_base_dir())["step"] == 3


def test_checkpoint_that_the_disk_does_not_take_leaves_the_last_one(edit_config):
    trainer = run(edit_config())
    (good,) = trainer.checkpoint_dir.iterdir()
    before = good.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)) as failure:
            trainer.save_checkpoint(7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert write_failure(failure.value) is not None
    assert list(trainer.checkpoint_dir.iterdir()) == [good] and good.read_bytes() == before
    assert not list(trainer.base_dir.glob(".partial-*"))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_edit_that_runs_already_is_not_gone_on_with(edit_config, hold_elsewhere):
    config = edit_config(max_num_iterations=2)
    run(config)
    folder = config.get_base_dir()
    process, before = hold_elsewhere(folder / ".lock"), files(folder)
    message = message_of(edit_config(pipeline__resume_from=folder, max_num_iterations=4))
    assert message.startswith(f"{folder} is being made already, by process {process} on ")
    assert files(folder) == before


def test_two_edits_that_would_have_one_folder_are_told(edit_config, hold_elsewhere):
    config = edit_config(timestamp="now")
    config.set_timestamp()  # as the other one does, before either has made the folder
    process = hold_elsewhere(config.get_base_dir() / ".lock")
    with pytest.raises(UserError, match=f"is being made already, by process {process} on "):
        config.save_config()
    assert not files(config.get_base_dir())


def test_edit_in_the_same_process_gives_its_folder_back(edit_config):
    config = edit_config()
    run(config)
    with pytest.raises(UserError):
        run(edit_config(timestamp="refused", pipeline__guidance__patch_sizes=(1, 50)))
    for folder in (config.get_base_dir(), config.get_base_dir().with_name("refused")):
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


CONTENTS = {"cut off": lambda whole: whole[: len(whole) // 2], "foreign": lambda whole: b"something else"}
PLACES = {
    "nerfstudio_models/step-000000001.ckpt": r"the checkpoint .* cannot be read .* It is left as it is\.",
    "config.yml": r"config\.yml",
    "source/latents/0000{view}.safetensors": r"cannot be read .* move this file away, and it is made anew",
    "source/views/0000{view}.png": r"",
    "gradient_strengths.json": r"cannot be read .* move it away",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize(("place", "told"), PLACES.items(), ids=PLACES)
def test_what_is_broken_in_a_run_is_named_and_left(edit_config, monkeypatch, place, told, content):
    config = edit_config(max_num_iterations=3, pipeline__guidance=CDSGuidanceConfig(relative_w_cut=0.5))
    with monkeypatch.context() as patch, pytest.raises(Terminated):
        in_step(patch, lambda step: step == 1, terminate)
        run(config)
    folder = config.get_base_dir()
    path = folder / place.format(view=view_of_step_2(config))
    path.write_bytes(content(path.read_bytes()))
    before = path.read_bytes()
    message = message_of(edit_config(pipeline__resume_from=folder))
    assert str(path) in message and re.search(told, message)
    assert path.read_bytes() == before


def view_of_step_2(config: CDSTrainerConfig) -> int:
    """Which view the third step draws."""
    return CDSDataManager.next_view(SimpleNamespace(train_dataset=range(VIEWS)), 2, config.machine.seed)


@pytest.mark.parametrize("kind", ["latents", "views"])
def test_source_view_of_another_size_is_named(edit_config, monkeypatch, kind):
    config = edit_config(max_num_iterations=3)
    with monkeypatch.context() as patch, pytest.raises(Terminated):
        in_step(patch, lambda step: step == 1, terminate)
        run(config)
    folder = config.get_base_dir() / "source" / kind
    if kind == "latents":
        path = folder / f"0000{view_of_step_2(config)}.safetensors"
        save_file({"latents": torch.zeros(1, 4, 9, 9)}, path)
    else:
        path = folder / f"0000{view_of_step_2(config)}.png"
        Image.new("RGB", (8, 8)).save(path)
    message = message_of(edit_config(pipeline__resume_from=config.get_base_dir()))
    assert re.search(rf"{path} (is|holds) .*: move this file away, and it is made anew", message)
