"""An edit on several devices is that of as many views a step on one, and ends as one: here two processes on a CPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, VIEWS, edit_config_for, load_checkpoint, run
from test_edit import interrupt_at
from test_mistakes import message_of

from cds_nerf.errors import Interrupted
from cds_nerf.guidance import CDSGuidanceConfig
from cds_nerf.nerf.datamanager import view_of_draw
from cds_nerf.nerf.several_devices import device_of

TWO_DEVICES = {"machine__num_devices": 2}
STEPS = {"max_num_iterations": 3, "steps_per_save": 1, "pipeline__orbit_frames": 0}
GROWING = {
    "pipeline__growing__kind": "greatest",
    "pipeline__growing__share": 0.1,
    "pipeline__growing__every": 2,
    "pipeline__growing__until": 1.0,
}


def assert_close_states(one: Any, other: Any) -> None:
    """Equal to rounding, of parameters that a step of Adam moves by a thousandth."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close_states(one[key], other[key])
    else:
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "first", "then"), [("source_run", 2, 1), ("splat_run", 2, 1), ("source_run", 1, 2), ("splat_run", 1, 2)]
)
def test_edit_on_two_devices_is_that_of_two_views_a_step_and_goes_on_on_one_or_begins_there(
    request, diffusion_folder, tmp_path, monkeypatch, source, first, then
):
    """With what all have to know alike: the strengths of gradients, which Gaussians are to grow, live changes."""

    def make(**typed: Any) -> Any:
        return edit_config_for(request.getfixturevalue(source), diffusion_folder, tmp_path, **typed)

    changes = tmp_path / "live_changes.json"
    changes.write_text('{"1": {"field": "source", "guidance.w_dds": 0.5}}')
    settings = {"pipeline__guidance": CDSGuidanceConfig(relative_w_cut=0.5), "pipeline__live_changes": changes}
    settings |= STEPS | {"max_num_iterations": 4}
    settings |= GROWING if source == "splat_run" else {}
    one = make(timestamp="one", pipeline__views_per_step=2, **settings)
    run(one)
    two = make(timestamp="two", machine__num_devices=first, pipeline__views_per_step=2 // first, **settings)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 3)
        run(two)
    assert not multiprocessing.active_children()
    folder = two.get_base_dir()
    assert load_checkpoint(folder)["step"] == 2
    run(make(pipeline__resume_from=folder, machine__num_devices=then))
    assert_close_states(load_checkpoint(folder)["pipeline"], load_checkpoint(one.get_base_dir())["pipeline"])


@pytest.mark.slow
def test_step_that_one_device_has_to_leave_out_is_left_out_by_all(edit_config):
    settings = {"pipeline__w_keep": 0.0, **STEPS}  # without relevance, which would be measured of the flawed view
    one, two = (
        edit_config(timestamp=name, **settings, **devices)
        for name, devices in (("one", {"pipeline__views_per_step": 2}), ("two", TWO_DEVICES))
    )
    flawed = view_of_draw(3, one.machine.seed, VIEWS)  # the second device's view of the second step
    assert flawed not in [view_of_draw(draw, one.machine.seed, VIEWS) for draw in (0, 1, 2, 4, 5)]
    states = []
    for config in (one, two):
        latents = config.output_dir / "scene" / "cds" / config.timestamp / "source" / "latents"
        latents.mkdir(parents=True)
        save_file({"latents": torch.full((1, 4, 4, 7), torch.nan)}, latents / f"{flawed:05d}.safetensors")
        trainer = run(config)
        assert trainer.skipped == 1 and trainer.skipped_last.startswith("step 1, as ")
        states.append(load_checkpoint(config.get_base_dir()))
    assert_close_states(states[0]["pipeline"], states[1]["pipeline"])


@pytest.mark.slow
def test_mistake_that_another_device_meets_is_told_as_the_first_ones_own(edit_config):
    config = edit_config(**TWO_DEVICES, **STEPS)
    view = view_of_draw(1, config.machine.seed, VIEWS)
    latents = config.output_dir / "scene" / "cds" / "now" / "source" / "latents" / f"{view:05d}.safetensors"
    config.timestamp = "now"
    latents.parent.mkdir(parents=True)
    latents.write_bytes(b"something else")
    assert message_of(config).startswith(f"{latents} cannot be read ")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_process_that_dies_ends_the_command_with_one_line(source_run, diffusion_folder, capture, tmp_path):
    words: list[Any] = [
        *("-m", "nerfstudio.scripts.train", "cds", "--data", capture, "--load-dir", source_run / "nerfstudio_models"),
        *("--pipeline.source-prompt", SOURCE_PROMPT, "--prompt", TARGET_PROMPT, "--vis", "tensorboard"),
        *("--pipeline.diffusion", diffusion_folder, "--pipeline.guidance-resolution", 16),
        *("--timestamp", "now", "--max-num-iterations", 100000, "--steps-per-save", 100000),
        *("--machine.device-type", "cpu", "--machine.num-devices", 2),
    ]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    run_folder = tmp_path / "outputs" / "scene" / "cds" / "now"
    while not (run_folder / "strips" / "000000.png").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(other_process(process.pid), signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    *_, last = told.splitlines()
    assert last == (
        "cds: the process of device 1 was ended by SIGKILL, most likely for want of memory; the edit goes on from its "
        f"last checkpoint with: ns-train cds --pipeline.resume-from {run_folder.relative_to(tmp_path)}"
    )
    assert "Traceback" not in told
    assert load_checkpoint(run_folder)["step"] >= 0


def other_process(first: int) -> int:
    """The process beside the first one of an edit on two devices."""
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    (other,) = [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    return int(other)


def test_other_number_of_devices_shares_the_views_of_a_step(edit_config, capsys):
    config = edit_config(pipeline__views_per_step=2, max_num_iterations=1, pipeline__orbit_frames=0)
    run(config)

    def resumed(devices: int, **typed: Any) -> Any:
        config_ = edit_config(
            pipeline__resume_from=config.get_base_dir(), machine__num_devices=devices, max_num_iterations=2, **typed
        )
        capsys.readouterr()
        config_.set_timestamp()
        return config_

    assert resumed(1).pipeline.views_per_step == 2
    assert resumed(2, pipeline__views_per_step=1).pipeline.views_per_step == 1
    assert "views a step" not in capsys.readouterr().out
    assert resumed(3).pipeline.views_per_step == 1
    assert "--machine.num-devices 3 makes 3 views a step of 2" in " ".join(capsys.readouterr().out.split())


def test_named_device_is_the_first_of_as_many():
    assert [device_of("cuda:2", rank) for rank in range(3)] == ["cuda:2", "cuda:3", "cuda:4"]
    assert [device_of(name, 1) for name in ("cpu", "cuda", None)] == ["cpu", "cuda", None]
