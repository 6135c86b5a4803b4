"""A scene's edit with another score, schedule or contrastive weighting: what it records, and that it can be resumed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_edit import load_checkpoint, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_edit import assert_equal_states, interrupt_at

from cds_nerf import CDSGuidance, CDSGuidanceConfig
from cds_nerf.errors import Interrupted, UserAdvice, UserError
from cds_nerf.nerf.gradient_record import RECORD
from cds_nerf.nerf.source_run import read_run_config


def test_terms_of_another_score_are_recorded_by_its_names(edit_config, capsys):
    config = edit_config(max_num_iterations=2, pipeline__guidance=CDSGuidanceConfig(score="pds", w_cut=1.0))
    run(config)
    scalars = EventAccumulator(str(config.get_base_dir())).Reload().Tags()["scalars"]
    terms = {name.removeprefix("Train Loss Dict/") for name in scalars if name.startswith("Train Loss Dict/")}
    assert {"pds_loss", "cut_loss", "keep_loss"} <= terms and "dds_loss" not in terms
    printed = capsys.readouterr().err
    assert "pds=" in printed and "cut=" in printed and "dds=" not in printed
    assert len(list((config.get_base_dir() / "strips").glob("*.png"))) == 2


def test_decreasing_timesteps_go_over_the_edit_s_own_steps_however_often_it_was_interrupted(edit_config, monkeypatch):
    seen: list[tuple[int, int, int]] = []
    call = CDSGuidance.__call__

    def spy(self: CDSGuidance, source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        out = call(self, source, target, *args, **kwargs)
        if "timestep" not in kwargs and target.any():  # neither a strip nor the trial on empty latents
            seen.append((kwargs["step"], kwargs["steps"], out.timestep.item()))
        return out

    monkeypatch.setattr(CDSGuidance, "__call__", spy)
    guidance = CDSGuidanceConfig(timestep_schedule="decreasing", timestep_spread=0)
    config = edit_config(max_num_iterations=4, steps_per_save=2, pipeline__guidance=guidance)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 3)
        run(config)
    run(edit_config(max_num_iterations=4, pipeline__resume_from=config.get_base_dir()))
    assert seen == [(0, 4, 950), (1, 4, 650), (2, 4, 350), (3, 4, 50)]


def test_resumed_edit_with_a_relative_contrastive_weight_equals_uninterrupted(edit_config, monkeypatch):
    settings = {"max_num_iterations": 5, "steps_per_save": 2}

    def config(name: str) -> Any:
        return edit_config(timestamp=name, pipeline__guidance=CDSGuidanceConfig(relative_w_cut=0.5), **settings)

    whole, broken = config("whole"), config("broken")
    run(whole)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 3)
        run(broken)
    run(edit_config(pipeline__resume_from=broken.get_base_dir(), **settings))
    states = [load_checkpoint(each.get_base_dir()) for each in (whole, broken)]
    assert_equal_states(*states)
    assert all(key.startswith("_model.") for key in states[0]["pipeline"])
    records = [json.loads((each.get_base_dir() / RECORD).read_text()) for each in (whole, broken)]
    assert records[0] == records[1] and list(records[0]) == ["2", "4"]


def test_without_a_record_the_strengths_are_measured_anew_which_is_said(edit_config):
    config = edit_config(max_num_iterations=2, pipeline__guidance=CDSGuidanceConfig(relative_w_cut=0.5))
    run(config)
    record = config.get_base_dir() / RECORD
    record.write_text(record.read_text()[:20])
    with pytest.raises(UserError, match=r"gradient_strengths\.json cannot be read .*: bring it back, or move it away"):
        run(edit_config(max_num_iterations=3, pipeline__resume_from=config.get_base_dir()))
    record.unlink()
    with pytest.warns(UserAdvice, match=r"gradient_strengths\.json knows nothing of step 1: .* is measured anew"):
        run(edit_config(max_num_iterations=3, pipeline__resume_from=config.get_base_dir()))


def test_a_weight_of_its_own_leaves_no_record(edit_config):
    config = edit_config(max_num_iterations=1)
    run(config)
    assert not (config.get_base_dir() / RECORD).exists()


def test_what_was_not_typed_is_the_score_s_own_in_the_run_s_config_too(edit_config):
    config = edit_config(max_num_iterations=1, pipeline__guidance__score="pds", pipeline__guidance__w_cut=1.0)
    run(config)
    recorded = read_run_config(config.get_base_dir()).pipeline.guidance
    assert (recorded.guidance_scale, recorded.w_cut, recorded.max_timestep) == (100.0, 1.0, 0.98)
