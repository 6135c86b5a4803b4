"""The buttons in the viewer: what an edit does between two steps, and while it is paused."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import edit_config_for, load_checkpoint, run
from test_edit import assert_equal_states, interrupt_at

from cds_nerf.cli import main
from cds_nerf.errors import Interrupted, Terminated, UserError
from cds_nerf.nerf import edit_renders
from cds_nerf.nerf.live_settings import LIVE_SETTINGS, LOG
from cds_nerf.nerf.live_trainer import LiveTrainer
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.trainer import CDSTrainer
from cds_nerf.nerf.viewer_buttons import Request
from cds_nerf.nerf.viewer_panel import LivePanel


def press(trainer: LiveTrainer, request: Request) -> None:
    """As the viewer does, twice where it asks."""
    for _ in range(2 if request.question else 1):
        trainer.pipeline.live_edit.ask(request)


def press_before(patch: pytest.MonkeyPatch, presses: dict[int, Request]) -> list[str]:
    """Somebody presses a button before these steps; what the panel shows at the step's end."""
    train_iteration, said = LiveTrainer.train_iteration, []

    def step_after_press(trainer: LiveTrainer, step: int) -> Any:
        if step in presses:
            press(trainer, presses[step])
        outputs = train_iteration(trainer, step)
        if step in presses:
            said.append(trainer.pipeline.live_edit.field_message.text)
        return outputs

    patch.setattr(LiveTrainer, "train_iteration", step_after_press)
    return said


@pytest.fixture(params=["rays", "splats"])
def make_edit(request, source_run, diffusion_folder, tmp_path) -> Callable[..., Any]:
    """Makes the configuration of an edit of five steps; the number of splats grows before the last two."""
    source = source_run if request.param == "rays" else request.getfixturevalue("splat_run")
    growing = {"share": 0.1, "kind": "greatest", "every": 3, "until": 1.0}
    more = {} if request.param == "rays" else {f"pipeline__growing__{name}": value for name, value in growing.items()}

    def make(**typed: Any) -> Any:
        given = typed if "pipeline__resume_from" in typed else {"max_num_iterations": 5} | more | typed
        return edit_config_for(source, diffusion_folder, tmp_path / "outputs", **given)

    return make


def test_edit_goes_back_to_the_source_and_is_repeated_and_resumed_so(make_edit, monkeypatch, capsys):
    get_train_loss_dict, fields = CDSPipeline.get_train_loss_dict, {}

    def note_field(pipeline: CDSPipeline, step: int) -> Any:
        fields[step] = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
        return get_train_loss_dict(pipeline, step)

    with monkeypatch.context() as patch:
        patch.setattr(CDSPipeline, "get_train_loss_dict", note_field)
        said = press_before(patch, {4: Request.RETURN})
        returned = make_edit(timestamp="returned", max_num_iterations=6)
        trainer = run(returned)
    assert said == ["Step 4 begins with the source's field."]
    assert_equal_states(fields[4], fields[0])
    with pytest.raises(AssertionError):
        assert_equal_states(fields[3], fields[0])
    with pytest.raises(AssertionError):
        assert_equal_states(fields[5], fields[0])
    for optimizer in trainer.optimizers.optimizers.values():
        assert {int(state["step"]) for state in optimizer.state.values()} == {2}
    folder = returned.get_base_dir()
    assert json.loads((folder / LOG).read_text()) == {"4": {"field": "source"}}

    repeated = make_edit(timestamp="repeated", max_num_iterations=6, pipeline__live_changes=folder / LOG)
    run(repeated)
    assert_equal_states(load_checkpoint(repeated.get_base_dir()), load_checkpoint(folder))

    for interrupted_at in (3, 5):
        broken = make_edit(timestamp=f"broken at {interrupted_at}", max_num_iterations=6, steps_per_save=1)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            press_before(patch, {4: Request.RETURN})
            interrupt_at(patch, interrupted_at)
            run(broken)
        with monkeypatch.context() as patch:
            press_before(patch, {4: Request.RETURN} if interrupted_at < 4 else {})
            run(make_edit(pipeline__resume_from=broken.get_base_dir()))
        assert_equal_states(load_checkpoint(broken.get_base_dir()), load_checkpoint(folder))

    capsys.readouterr()
    assert main(["history", str(folder)]) == 0
    assert "before step 4: back to the source's field" in capsys.readouterr().out


def test_a_new_return_takes_the_place_of_a_later_one(edit_config, tmp_path, monkeypatch):
    log = tmp_path / "log.json"
    log.write_text('{"2": {"field": "source", "w_keep": 2.0}}')
    config = edit_config(pipeline__live_changes=log)
    press_before(monkeypatch, {1: Request.RETURN})
    run(config)
    assert json.loads((config.get_base_dir() / LOG).read_text()) == {"1": {"field": "source"}, "2": {"w_keep": 2.0}}


def test_log_that_goes_to_no_source_is_refused(edit_config, tmp_path):
    log = tmp_path / "log.json"
    log.write_text('{"2": {"field": "target"}}')
    with pytest.raises(UserError, match="sets field to 'target'; it can be set to 'source' alone"):
        edit_config(pipeline__live_changes=log).set_timestamp()


def test_source_that_has_gone_is_told_and_the_edit_goes_on(edit_config, monkeypatch):
    def cannot(trainer: LiveTrainer) -> None:
        raise UserError("the checkpoint is not there")

    config = edit_config()
    with monkeypatch.context() as patch:
        said = press_before(patch, {2: Request.RETURN})
        patch.setattr(LiveTrainer, "_return_to_source", cannot)
        run(config)
    assert said == ["**Not done:** the checkpoint is not there"]
    assert not (config.get_base_dir() / LOG).exists()
    plain = edit_config(timestamp="plain")
    run(plain)
    assert_equal_states(load_checkpoint(config.get_base_dir()), load_checkpoint(plain.get_base_dir()))


def test_return_is_asked_for_twice(edit_config):
    panel = run(edit_config(max_num_iterations=1)).pipeline.live_edit
    panel.close("")
    panel.ask(Request.RETURN)
    assert not panel.requests and "Press it again" in panel.field_message.text
    for _ in range(3):
        panel.ask(Request.SAVE)  # once is enough, and it is no answer to the question
    panel.ask(Request.RETURN)
    assert list(panel.requests) == [Request.SAVE]
    panel.take(panel.field_apply)
    panel.ask(Request.RETURN)
    assert list(panel.requests) == [Request.SAVE]
    panel.ask(Request.RETURN)
    assert list(panel.requests) == [Request.SAVE, Request.RETURN]


def test_checkpoint_and_videos_of_the_moment_are_written_beside_the_edits_own(edit_config, monkeypatch):
    config, saved = edit_config(max_num_iterations=3), []
    save = CDSTrainer.save_checkpoint

    def note(trainer: CDSTrainer, step: int) -> None:
        save(trainer, step)
        saved.append([path.name for path in trainer.checkpoint_dir.iterdir()])

    with monkeypatch.context() as patch:
        patch.setattr(CDSTrainer, "save_checkpoint", note)
        said = press_before(patch, {1: Request.SAVE, 2: Request.VIDEO})
        run(config)
    folder = config.get_base_dir()
    assert said == ["Step 0 is saved.", f"The video is written: {folder / 'before_after_000001.mp4'}"]
    assert saved == [["step-000000000.ckpt"], ["step-000000002.ckpt"]]
    assert {path.name for path in folder.glob("*.mp4")} == {"before_after.mp4", "before_after_000001.mp4"}
    plain = edit_config(max_num_iterations=3, timestamp="plain")
    run(plain)
    assert_equal_states(load_checkpoint(folder), load_checkpoint(plain.get_base_dir()))


def test_two_videos_of_one_step_stand_side_by_side(edit_config):
    trainer = run(edit_config(max_num_iterations=1))
    first, second = (trainer.renders.write_video_of(0) for _ in range(2))
    assert (first.name, second.name) == ("before_after_000000.mp4", "before_after_000000_2.mp4")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("request_", [Request.SAVE, Request.VIDEO])
def test_nothing_is_written_before_the_first_step(edit_config, monkeypatch, request_):
    said = press_before(monkeypatch, {0: request_})
    run(edit_config(max_num_iterations=1))
    assert said == ["Nothing to write: the edit has made no step yet."]


def test_video_without_an_orbit_and_a_full_disk_are_told(edit_config, monkeypatch):
    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    said = press_before(monkeypatch, {1: Request.VIDEO})
    run(edit_config(max_num_iterations=2, pipeline__orbit_frames=0))
    with monkeypatch.context() as patch:
        patch.setattr(edit_renders, "write_video", write)
        patch.setattr(edit_renders.EditRenders, "finish", lambda renders, step: None)
        run(edit_config(max_num_iterations=2, timestamp="full"))
    assert said[0] == "**Not done:** --pipeline.orbit-frames is 0, so that there is no way for a video's camera"
    assert said[1].startswith("**Not done:**") and "No space left on device" in said[1]


def test_buttons_say_when_the_edit_is_done(edit_config):
    panel = run(edit_config(max_num_iterations=1)).pipeline.live_edit
    panel.ask(Request.VIDEO)
    assert not panel.requests
    assert panel.field_message.text == "The edit is done: its checkpoint, views and video are in its folder."


def test_buttons_say_when_the_edit_has_not_begun():
    panel = LivePanel(dict.fromkeys(LIVE_SETTINGS, ""))
    panel.ask(Request.SAVE)
    assert not panel.requests and panel.field_message.text == "The edit has not begun yet."


def pause_after(patch: pytest.MonkeyPatch, paused_at: int) -> None:
    """Somebody presses nerfstudio's own button within that step."""
    train_iteration = LiveTrainer.train_iteration

    def paused(trainer: LiveTrainer, step: int) -> Any:
        outputs = train_iteration(trainer, step)
        if step == paused_at:
            trainer.training_state = "paused"
        return outputs

    patch.setattr(LiveTrainer, "train_iteration", paused)


def while_paused(patch: pytest.MonkeyPatch, act: Callable[[CDSTrainer], None]) -> None:
    """Somebody acts as soon as the edit is paused, in another thread, as the viewer does."""
    train = CDSTrainer.train

    def train_with_somebody(trainer: CDSTrainer) -> None:
        def wait_and_act() -> None:
            while trainer.training_state != "paused":
                time.sleep(0.01)
            act(trainer)

        threading.Thread(target=wait_and_act, daemon=True).start()
        train(trainer)

    patch.setattr(CDSTrainer, "train", train_with_somebody)


def wait_for_message(trainer: CDSTrainer, part: str) -> None:
    end = time.monotonic() + 60
    while part not in trainer.pipeline.live_edit.field_message.text:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_edit_that_starts_paused_goes_on_with_what_was_changed_meanwhile(edit_config, monkeypatch):
    seen = []

    def act(trainer: CDSTrainer) -> None:
        panel = trainer.pipeline.live_edit
        panel._fields["guidance.w_cut"].value = "1.5"
        with trainer.train_lock:
            panel.take(panel.field_apply)
        seen.append((panel.field_message.text, list(trainer.checkpoint_dir.glob("*"))))
        trainer.viewer_state._toggle_training_state(None)  # nerfstudio's own button

    config = edit_config(start_paused=True, vis="viewer", viewer__quit_on_train_completion=True)
    while_paused(monkeypatch, act)
    trainer = run(config)
    trainer.viewer_state.viser_server.stop()
    assert seen == [("Changed from step 0 on: guidance.w_cut.", [])]
    assert load_checkpoint(config.get_base_dir())["step"] == 2
    assert trainer.config.pipeline.guidance.w_cut == 1.5


def test_paused_edit_does_at_once_what_is_asked(edit_config, source_run, monkeypatch):
    seen = {}

    def act(trainer: CDSTrainer) -> None:
        press(trainer, Request.SAVE)
        wait_for_message(trainer, "Step 1 is saved.")
        seen["saved"] = load_checkpoint(trainer.base_dir)["step"]
        press(trainer, Request.VIDEO)
        wait_for_message(trainer, "before_after_000001.mp4")
        press(trainer, Request.RETURN)
        wait_for_message(trainer, "Step 2 begins with the source's field.")
        seen["field"] = {name: value.clone() for name, value in trainer.pipeline.state_dict().items()}
        trainer.training_state = "training"

    config = edit_config(max_num_iterations=4)
    with monkeypatch.context() as patch:
        pause_after(patch, 1)
        while_paused(patch, act)
        run(config)
    assert seen["saved"] == 1
    assert_equal_states(dict(seen["field"]), dict(load_checkpoint(source_run)["pipeline"]))
    repeated = edit_config(
        max_num_iterations=4, timestamp="repeated", pipeline__live_changes=config.get_base_dir() / LOG
    )
    run(repeated)
    assert_equal_states(load_checkpoint(repeated.get_base_dir()), load_checkpoint(config.get_base_dir()))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)])
def test_edit_that_is_ended_while_a_video_is_made_keeps_its_last_step(edit_config, monkeypatch, number, error):
    def end(*_: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    config = edit_config()
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(edit_renders, "write_video", end)
        press_before(patch, {2: Request.VIDEO})
        run(config)
    assert load_checkpoint(config.get_base_dir())["step"] == 1


def test_paused_edit_that_is_interrupted_keeps_its_last_step(edit_config, monkeypatch):
    def act(trainer: CDSTrainer) -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    config = edit_config()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        pause_after(patch, 1)
        while_paused(patch, act)
        run(config)
    assert load_checkpoint(config.get_base_dir())["step"] == 1
    run(edit_config(pipeline__resume_from=config.get_base_dir()))
    plain = edit_config(timestamp="plain")
    run(plain)
    assert_equal_states(load_checkpoint(config.get_base_dir()), load_checkpoint(plain.get_base_dir()))


def test_checkpoint_of_the_moment_opens_in_nerfstudio(edit_config, monkeypatch):
    config = edit_config()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        press_before(patch, {2: Request.SAVE})
        interrupt_at(patch, 2)
        patch.setattr(CDSTrainer, "save_completed", lambda trainer: None)
        run(config)
    _, _, _, step = eval_setup(Path(config.get_base_dir()) / "config.yml", test_mode="inference")
    assert step == 1
