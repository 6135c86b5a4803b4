"""Gaussians that an edit adds: their optimizers' states follow, they are saved, and what was there is known by them."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.models import splatfacto
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import edit_config_for, load_checkpoint, run
from test_edit import assert_equal_states, interrupt_at
from test_splat_edit import GAUSSIANS, gaussians
from test_survival import in_step

from cds_nerf.fields.growing import note_gradients, source_indices
from cds_nerf.fields.splat_rasterization import rasterization
from cds_nerf.nerf.held_out import render_held_out


@pytest.fixture
def growing_edit(splat_run, diffusion_folder, tmp_path):
    """Adds a tenth of the Gaussians after every second step, four times in ten steps."""

    def make(source: Path = splat_run, **typed: object) -> Any:
        usual = {
            "pipeline__growing__kind": "greatest",
            "pipeline__growing__share": 0.1,
            "pipeline__growing__every": 2,
            "max_num_iterations": 10,
        }
        return edit_config_for(source, diffusion_folder, tmp_path / "outputs", **(usual | typed))

    return make


def test_the_share_with_the_greatest_gradient_is_added(growing_edit, splat_run):
    config = growing_edit()
    trainer = run(config)
    count = before = len(gaussians(splat_run)["means"])
    for _ in range(4):
        count += int(0.1 * count)
    assert {len(values) for values in gaussians(config.get_base_dir()).values()} == {count}
    for name in GAUSSIANS:
        (moved,) = trainer.optimizers.optimizers[name].param_groups[0]["params"]
        assert moved is trainer.pipeline.model.gauss_params[name]
        assert trainer.optimizers.parameters[name][0] is moved
        state = trainer.optimizers.optimizers[name].state[moved]
        assert all(len(value) == count for value in state.values() if value.dim())
    known = source_indices(trainer.pipeline.model, trainer.optimizers.optimizers)
    kept = known[known >= 0]
    assert len(kept.unique()) == len(kept) < before < count  # large ones have gone when they were split
    assert load_checkpoint(config.get_base_dir())["pipeline"]["_model.gauss_params.means"].shape == (count, 3)


@pytest.mark.parametrize("kind", ["greatest", "gsplat"])
@pytest.mark.parametrize("interrupted_at", [3, 4])
def test_resumed_edit_equals_uninterrupted(growing_edit, monkeypatch, kind, interrupted_at):
    """In between two additions, and right after one."""
    share = 0.1 if kind == "greatest" else None
    settings = {
        "pipeline__growing__kind": kind,
        "pipeline__growing__share": share,
        "max_num_iterations": 6,
        "pipeline__growing__until": 1.0,
    }
    whole = growing_edit(timestamp="whole", **settings)
    run(whole)
    broken = growing_edit(timestamp="broken", steps_per_save=1, **settings)
    with monkeypatch.context() as patch, pytest.raises(BaseException, match="interrupted"):
        interrupt_at(patch, interrupted_at)
        run(broken)
    folder = broken.get_base_dir()
    run(edit_config_for(folder, folder, folder, pipeline__resume_from=folder))
    assert_equal_states(load_checkpoint(folder), load_checkpoint(whole.get_base_dir()))


def test_gsplats_strategy_adds_and_removes(growing_edit, splat_run):
    settings = {"pipeline__growing__kind": "gsplat", "pipeline__growing__share": None}
    config = growing_edit(pipeline__growing__threshold=1e-9, **settings)
    run(config)
    assert len(gaussians(config.get_base_dir())["means"]) > len(gaussians(splat_run)["means"])
    none = growing_edit(timestamp="none", pipeline__growing__threshold=1e9, **settings)
    run(none)
    assert len(gaussians(none.get_base_dir())["means"]) <= len(gaussians(splat_run)["means"])


def test_gsplat_1_5_has_two_radii(growing_edit, splat_run, monkeypatch):
    draw = functools.partial(rasterization, extent="box")
    monkeypatch.setattr(splatfacto, "rasterization", draw)
    config = growing_edit(max_num_iterations=3)
    run(config)
    assert len(gaussians(config.get_base_dir())["means"]) > len(gaussians(splat_run)["means"])


def test_source_is_still_the_source(growing_edit, splat_run, tmp_path):
    config = growing_edit()
    pipeline = run(config).pipeline
    with pipeline.source_weights():
        assert pipeline.model.num_points == len(gaussians(splat_run)["means"])
        frame = pipeline.render_frame(0)
    _, source, _, _ = eval_setup(splat_run / "config.yml", test_mode="inference")
    expected = source.model.get_outputs_for_camera(pipeline.orbit[0])["rgb"].permute(2, 0, 1)
    torch.testing.assert_close(frame, expected)
    _, opened, _, _ = eval_setup(config.get_base_dir() / "config.yml", test_mode="test")
    assert opened.model.num_points == len(gaussians(config.get_base_dir())["means"])
    render_held_out(config.get_base_dir(), tmp_path / "held_out")


def test_edit_of_a_grown_edit(growing_edit):
    first = growing_edit(timestamp="first", max_num_iterations=3)
    run(first)
    second = growing_edit(first.get_base_dir(), timestamp="second", max_num_iterations=1)
    pipeline = run(second).pipeline
    with pipeline.source_weights():
        for name, values in gaussians(first.get_base_dir()).items():
            assert torch.equal(pipeline.model.gauss_params[name].cpu(), values)


def test_steps_that_were_left_out_say_nothing_of_gaussians(growing_edit, monkeypatch):
    """Neither do they add any."""

    def spoil(losses: dict[str, torch.Tensor]) -> None:
        raise FloatingPointError("spoiled")

    with monkeypatch.context() as patch:
        in_step(patch, lambda step: step == 1, spoil)
        config = growing_edit(max_num_iterations=3, pipeline__growing__until=1.0)
        trainer = run(config)
    assert trainer.skipped == 1
    state = trainer.optimizers.optimizers["means"].state[trainer.pipeline.model.means]
    assert state["views"].max() == 2  # of three steps
    assert (source_indices(trainer.pipeline.model, trainer.optimizers.optimizers) >= 0).all()


def test_views_of_one_step_say_what_steps_of_their_own_would(growing_edit):
    config = growing_edit(max_num_iterations=1, pipeline__views_per_step=2)
    trainer = run(config)
    pipeline, optimizers = trainer.pipeline, trainer.optimizers.optimizers
    state = optimizers["means"].state[pipeline.model.means]

    def noted(views: int, *draws: int) -> torch.Tensor:
        for name in ("gradient_sum", "views"):
            state.pop(name, None)
        for draw in draws:
            pipeline.zero_grad()
            pipeline.config.views_per_step, pipeline.field.drawn = views, []
            sum(pipeline.get_train_loss_dict(draw)[1].values()).backward()
            field = pipeline.field
            note_gradients(pipeline.model, optimizers, field.drawn, field.free, views, pipeline.devices.sum)
        return torch.stack([state["gradient_sum"], state["views"]])

    torch.testing.assert_close(noted(2, 1), noted(1, 2, 3))


def test_ray_fields_have_no_gaussians(edit_config):
    for name, value in (("pipeline.growing.kind", "greatest"), ("pipeline.w_anchor", 1.0)):
        config = edit_config(**{name.replace(".", "__"): value})
        with pytest.raises(BaseException, match=r"is for splats, and .* has none: leave it out"):
            run(config)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            {"pipeline__growing__threshold": 2.0},
            "threshold is for --pipeline.growing.kind gsplat, and that is greatest",
        ),
        (
            {"pipeline__growing__kind": "gsplat", "pipeline__growing__every": None},
            "share is for --pipeline.growing.kind greatest, and that is gsplat",
        ),
        ({"pipeline__growing__kind": "off", "pipeline__growing__share": None}, "every says when Gaussians are added"),
        ({"pipeline__w_anchor": 1.0, "pipeline__w_keep": 0.0}, "w-anchor holds what is outside the region, and"),
    ],
)
def test_what_would_do_nothing_is_refused(growing_edit, typed, told):
    with pytest.raises(BaseException, match=re.escape(told)):
        run(growing_edit(**typed))


def test_shares_beyond_all_are_refused(growing_edit):
    with pytest.raises(BaseException, match=r"--pipeline\.growing\.share is 1\.5; it must be at most 1"):
        run(growing_edit(pipeline__growing__share=1.5))
