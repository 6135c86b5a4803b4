"""A scene's edit with another score, schedule or contrastive weighting: what it records, and that it can be resumed."""

from __future__ import annotations

from typing import Any

import pytest
from small_edit import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_edit import interrupt_at

from cds_nerf import CDSGuidance, CDSGuidanceConfig
from cds_nerf.errors import Interrupted


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
