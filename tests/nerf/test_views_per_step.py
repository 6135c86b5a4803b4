"""Several views a step: the mean of their losses and gradients, in the memory of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_edit import edit_config_for, load_checkpoint, run
from test_edit import assert_equal_states, interrupt_at

from cds_nerf import CDSGuidance
from cds_nerf.errors import Interrupted

pytestmark = pytest.mark.field


@pytest.fixture(params=["source_run", "splat_run"])
def edit_of_two_views(request, diffusion_folder, tmp_path):
    def make(**typed: Any) -> Any:
        source: Path = request.getfixturevalue(request.param)
        settings = {"pipeline__views_per_step": 2, "max_num_iterations": 1} | typed
        return edit_config_for(source, diffusion_folder, tmp_path / "outputs", **settings)

    return make


def test_step_takes_the_mean_over_its_views(edit_of_two_views):
    pipeline = run(edit_of_two_views()).pipeline
    parameters = [parameter for group in pipeline.get_param_groups().values() for parameter in group]

    def gradients(losses: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        sum(losses.values()).backward()
        values = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        pipeline.zero_grad()
        return values

    pipeline.zero_grad()
    singles = [pipeline._losses_of_view(1, draw) for draw in (2, 3)]
    assert singles[0][1]["view"] != singles[1][1]["view"]
    each = [gradients(losses) for losses, _ in singles]
    _, losses, _ = pipeline.get_train_loss_dict(step=1)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx((singles[0][0][name] + singles[1][0][name]).item() / 2, rel=1e-4)
    for ours, one, other in zip(gradients(losses), *each, strict=True):
        torch.testing.assert_close(ours, (one + other) / 2, rtol=1e-4, atol=1e-6 * float(ours.abs().max()) + 1e-12)


def test_resumed_edit_equals_uninterrupted(edit_of_two_views, monkeypatch):
    whole = edit_of_two_views(timestamp="whole", max_num_iterations=3)
    run(whole)
    broken = edit_of_two_views(timestamp="broken", max_num_iterations=3, steps_per_save=1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 2)
        run(broken)
    resumed = edit_of_two_views(
        pipeline__resume_from=broken.get_base_dir(), pipeline__views_per_step=None, max_num_iterations=None
    )
    run(resumed)
    assert_equal_states(load_checkpoint(broken.get_base_dir()), load_checkpoint(whole.get_base_dir()))


def test_step_whose_second_view_is_not_finite_moves_nothing(edit_of_two_views, monkeypatch):
    trainer = run(edit_of_two_views(max_num_iterations=1))
    before = {name: value.clone() for name, value in trainer.pipeline.state_dict().items()}
    calls, call = [], CDSGuidance.__call__

    def infinite_at_the_second(self, source_latents, target_latents, *args, **kwargs):
        calls.append(None)
        factor = float("inf") if len(calls) == 2 else 1.0
        return call(self, source_latents, target_latents * factor, *args, **kwargs)

    monkeypatch.setattr(CDSGuidance, "__call__", infinite_at_the_second)
    trainer.config.max_num_iterations = 5
    trainer.train_iteration(1)
    assert len(calls) == 2 and trainer.skipped == 1
    assert_equal_states(dict(trainer.pipeline.state_dict()), before)
