"""Settings that are changed while an edit runs: from the next step on, checked, and written down for a repetition."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from nerfstudio.data.datasets.base_dataset import InputDataset
from small_edit import TARGET_PROMPT, edit_config_for, load_checkpoint, run
from test_edit import assert_equal_states, interrupt_at

from cds_nerf.errors import Interrupted, UserError
from cds_nerf.nerf.live_settings import LOG
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.trainer import CDSTrainer
from cds_nerf.nerf.viewer_buttons import Request

CHANGES = {
    1: {"target_prompt": "a photo of a lion", "guidance.w_cut": "1.5"},
    3: {
        "guidance.score": "pds",
        "guidance.min_timestep": "0.2",
        "guidance.timestep_schedule": "decreasing",
        "w_keep": "0",
    },
}


def press_apply(pipeline: CDSPipeline, typed: dict[str, str]) -> str:
    """Type into the panel's fields and press its button; the line that it shows then."""
    panel = pipeline.live_edit
    for path, text in typed.items():
        panel._fields[path].value = text
    panel.take(panel.field_apply)
    return panel.field_message.text


def press_before(monkeypatch: pytest.MonkeyPatch, changes: dict[int, dict[str, str]]) -> None:
    """Somebody uses the panel before these steps."""
    get_train_loss_dict = CDSPipeline.get_train_loss_dict

    def step_after_change(pipeline: CDSPipeline, step: int) -> Any:
        if step in changes and step == pipeline.next_step:
            assert press_apply(pipeline, changes[step]).startswith(f"Changed from step {step} on")
        return get_train_loss_dict(pipeline, step)

    monkeypatch.setattr(CDSPipeline, "get_train_loss_dict", step_after_change)


@pytest.fixture
def changed_edit(edit_config, monkeypatch) -> Path:
    """The run folder of an edit whose settings were changed in the panel."""
    with monkeypatch.context() as patch:
        press_before(patch, CHANGES)
        config = edit_config(max_num_iterations=5, timestamp="changed")
        run(config)
    return config.get_base_dir()


def test_edit_with_the_log_of_another_ends_in_the_same_field(edit_config, changed_edit):
    repeated = edit_config(max_num_iterations=5, timestamp="repeated", pipeline__live_changes=changed_edit / LOG)
    panel = run(repeated).pipeline.live_edit
    assert [panel._fields[path].value for path in ("target_prompt", "guidance.score")] == ["a photo of a lion", "pds"]
    assert (repeated.get_base_dir() / LOG).read_text() == (changed_edit / LOG).read_text()
    assert_equal_states(load_checkpoint(repeated.get_base_dir()), load_checkpoint(changed_edit))
    plain = edit_config(max_num_iterations=5, timestamp="plain")
    run(plain)
    with pytest.raises(AssertionError):
        assert_equal_states(load_checkpoint(plain.get_base_dir()), load_checkpoint(changed_edit))


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_edit_goes_on_with_what_was_set_last(edit_config, changed_edit, step, monkeypatch):
    config = edit_config(max_num_iterations=5, timestamp="resumed", steps_per_save=1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        press_before(patch, CHANGES)
        interrupt_at(patch, step)
        run(config)
    with monkeypatch.context() as patch:
        press_before(patch, {since: typed for since, typed in CHANGES.items() if since > step})
        run(edit_config(pipeline__resume_from=config.get_base_dir()))
    assert_equal_states(load_checkpoint(config.get_base_dir()), load_checkpoint(changed_edit))


def test_log_says_what_each_change_set_with_its_step(changed_edit):
    log = json.loads((changed_edit / LOG).read_text())
    assert log == {
        "1": {"target_prompt": "a photo of a lion", "guidance.w_cut": 1.5},
        "3": {
            "w_keep": 0.0,
            "guidance.score": "pds",
            "guidance.guidance_scale": 100.0,
            "guidance.min_timestep": 0.2,
            "guidance.max_timestep": 0.98,
            "guidance.timestep_schedule": "decreasing",
        },
    }


def test_new_prompt_makes_the_relevance_anew_on_a_bar(edit_config, monkeypatch, capsys):
    press_before(monkeypatch, {1: {"target_prompt": "a photo of a lion"}, 2: {"guidance.w_cut": "1"}})
    config = edit_config(max_num_iterations=3)
    run(config)
    assert capsys.readouterr().err.count("Region: 7/7 (100 %)") == 2  # before the first step, and with the new prompt
    folders = {path.name for path in (config.get_base_dir() / "source" / "measured").iterdir()}
    assert "auto" in folders and len([name for name in folders if name.startswith("auto-")]) == 1


FAR_BOX = {"region.kind": "box", "region.box_center": "50, 50, 50", "region.box_scale": "0.1 0.1 0.1"}


def test_region_that_is_set_live_acts_and_is_repeated(edit_config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        press_before(patch, {1: FAR_BOX})
        config = edit_config(max_num_iterations=3, timestamp="changed")
        pipeline = run(config).pipeline
    assert pipeline.region.of_view(0, step=2).max() == 0
    assert pipeline.live_edit._fields["region.box_center"].value == "50 50 50"
    log = config.get_base_dir() / LOG
    box = {"region.kind": "box", "region.box_center": [50.0] * 3, "region.box_scale": [0.1] * 3}
    assert json.loads(log.read_text()) == {"1": box}
    repeated = edit_config(max_num_iterations=3, timestamp="repeated", pipeline__live_changes=log)
    run(repeated)
    assert_equal_states(load_checkpoint(repeated.get_base_dir()), load_checkpoint(config.get_base_dir()))


def test_views_are_asked_of_each_text_that_the_region_is_given_live(edit_config, monkeypatch, capsys):
    changes = {1: {"region.kind": "text", "region.text": "the fox"}, 2: {"region.text": "a nose"}}
    with monkeypatch.context() as patch:
        press_before(patch, changes | {3: {"region.ramp": "0.2 0.4"}})
        config = edit_config(max_num_iterations=5, timestamp="changed")
        pipeline = run(config).pipeline
    assert capsys.readouterr().err.count("Region: 7/7 (100 %)") == 3  # before the first step, and for each text
    folders = {path.name for path in (config.get_base_dir() / "source" / "measured").iterdir()}
    assert len([name for name in folders if name.startswith("text-")]) == 2
    assert pipeline.config.region.ramp == (0.2, 0.4)
    repeated = edit_config(
        max_num_iterations=5, timestamp="repeated", pipeline__live_changes=config.get_base_dir() / LOG
    )
    run(repeated)
    assert_equal_states(load_checkpoint(repeated.get_base_dir()), load_checkpoint(config.get_base_dir()))


def test_views_are_looked_at_when_the_region_begins_to_ask_them(edit_config, monkeypatch, capsys):
    press_before(monkeypatch, {1: {"region.kind": "auto-box"}})
    run(edit_config(max_num_iterations=2, pipeline__region__kind="none"))
    bars = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Region: ") and "100 %" in line]
    assert bars[-1].startswith("Region: 7/7")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"region.kind": "circle"}, "is 'circle'; it must be one of auto, text, masks, box, none"),
        ({"region.kind": "text"}, "region.text is missing"),
        ({"region.text": "the fox"}, "region.text is for the region text, and --pipeline.region.kind is auto"),
        ({"region.ramp": "0.5"}, "ramp is '0.5'; it must be two numbers"),
        ({"region.ramp": "0.7 0.5"}, "region.ramp is 0.7 0.5; the first must be less"),
        ({"region.kind": "masks"}, "but the capture has none"),
        ({"region.box_scale": "1 2"}, "box_scale is '1 2'; it must be three numbers"),
        ({"region.box_center": "1 2 nan"}, "box_center is '1 2 nan'; it must be three numbers"),
        ({"region.kind": "box", "region.box_scale": "1 0 1"}, "each side must be greater than 0"),
        ({"guidance.w_cut": "much"}, "w_cut is 'much'; it must be a number"),
        ({"guidance.w_cut": "-1"}, "w_cut is -1.0; it must be at least 0"),
        ({"guidance.min_timestep": "0.99"}, "min_timestep is 0.99; it must be between 0 and max_timestep"),
        ({"guidance.guidance_scale": "nan"}, "guidance_scale is nan; it must be at least 0"),
        ({"guidance.timestep_schedule": "cosine"}, "timestep_schedule is 'cosine'; it must be 'uniform' or"),
        ({"guidance.score": "psd"}, "score is 'psd'; it must be one of"),
        ({"w_keep": "-0.5"}, "w_keep is -0.5; it must be at least 0"),
        ({"target_prompt": " "}, "target_prompt is missing"),
        ({"source_prompt": TARGET_PROMPT}, "there is nothing to change"),
    ],
)
def test_bad_value_is_told_in_the_panel_and_the_old_one_stays(small_edit_under_way, typed, message):
    before = small_edit_under_way.live.at(99)
    said = press_apply(small_edit_under_way, typed)
    small_edit_under_way.live_edit.show(before)
    assert said.startswith("**Not changed:**") and message in said
    assert small_edit_under_way.live.at(99) == before
    assert not small_edit_under_way.live.log.exists()


@pytest.fixture(scope="module")
def small_edit_under_way(source_run, diffusion_folder, tmp_path_factory) -> CDSPipeline:
    config = edit_config_for(source_run, diffusion_folder, tmp_path_factory.mktemp("edit"), max_num_iterations=1)
    return run(config).pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "which is no file: give the live_changes.json of an edit's run folder"),
        ("{", "cannot be read"),
        ("[1]", "is no log of live changes"),
        ('{"1": {"seed": 3}}', "changes seed; what can be changed live is source_prompt"),
        ('{"1": {"w_keep": "x"}}', "sets w_keep to 'x'; it must be a number"),
        ('{"1": {"region.box_scale": [1, 2]}}', "sets region.box_scale to [1, 2]; it must be three numbers"),
    ],
)
def test_log_that_cannot_be_repeated_is_told_before_anything_is_made(edit_config, tmp_path, text, message):
    log = tmp_path / "log.json"
    if text is not None:
        log.write_text(text)
    config = edit_config(pipeline__live_changes=log)
    with pytest.raises(UserError, match=re.escape(message)):
        config.set_timestamp()


def test_viewer_has_the_controls_and_opens_no_photograph(edit_config, monkeypatch, capsys):
    def read(*_: Any) -> None:
        raise AssertionError("a photograph was read")

    def press_as_the_viewer_does(pipeline: CDSPipeline, typed: dict[str, str]) -> str:
        panel = pipeline.live_edit
        for path, text in typed.items():
            panel._fields[path].value = text
        panel.field_apply.cb_hook(panel.field_apply)  # under the train lock, as the viewer has wired it
        return panel.field_message._markdown.content

    monkeypatch.setattr(InputDataset, "get_numpy_image", read)
    monkeypatch.setattr(CDSTrainer, "_train_complete_viewer", lambda trainer: None)
    trainer = run(edit_config(vis="viewer", max_num_iterations=1))
    pipeline, port = trainer.pipeline, trainer.viewer_state.viser_server.get_port()
    assert f"ssh -L {port}:localhost:{port} SERVER" in capsys.readouterr().out
    assert pipeline.live_edit._fields["target_prompt"].gui_handle.value == TARGET_PROMPT
    assert "Changed from step 1 on: guidance.w_cut" in press_as_the_viewer_does(pipeline, {"guidance.w_cut": "1.5"})
    said = press_as_the_viewer_does(pipeline, {"guidance.w_cut": "-1"})
    assert "w_cut is -1.0; it must be at least 0" in said
    assert pipeline.live.at(1)["guidance.w_cut"] == 1.5

    controls = trainer.viewer_state.control_panel
    assert "check Crop Viewport" in trainer._meet(Request.CROP, step=1)
    controls.crop_viewport = True
    controls._crop_center.value, controls._crop_rot.value = (0.1, 0.2, 0.3), (0.0, 0.0, 0.5)
    controls._crop_scale.value = (1.0, 2.0, 3.0)
    assert trainer._meet(Request.CROP, step=1).startswith("Changed from step 1 on: region.kind, region.box_center")
    now = pipeline.live.at(1)
    assert [now[f"region.box_{name}"] for name in ("center", "rotation", "scale")] == [
        pytest.approx((0.1, 0.2, 0.3)),
        pytest.approx((0.0, 0.0, 0.5), abs=1e-6),
        (1.0, 2.0, 3.0),
    ]
    trainer.viewer_state.viser_server.stop()
