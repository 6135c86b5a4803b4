"""Timestep schedules: what each step of an edit draws, for every score."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.errors import UserError
from cds_nerf.guidance.registry import SCORES, score_class
from cds_nerf.guidance.timestep_schedule import timestep_bounds
from cds_nerf.image.latent_descent import descend_latents

STEPS = 11


def decreasing(spread: float = 0.2, **settings: object) -> CDSGuidanceConfig:
    bounds = {"min_timestep": 0.2, "max_timestep": 0.9}
    return CDSGuidanceConfig(timestep_schedule="decreasing", timestep_spread=spread, **(bounds | settings))


def test_without_a_spread_it_is_a_line_from_the_most_to_the_least_noise() -> None:
    found = [timestep_bounds(decreasing(spread=0), step, STEPS) for step in range(STEPS)]
    for step, (low, high) in enumerate(found):
        assert low == high == pytest.approx(0.9 - 0.07 * step)


def test_with_a_spread_a_window_slides_from_the_top_to_the_bottom() -> None:
    first, middle, last = (timestep_bounds(decreasing(), step, STEPS) for step in (0, 5, 10))
    assert first == pytest.approx((0.76, 0.9))
    assert middle == pytest.approx((0.48, 0.62))
    assert last == pytest.approx((0.2, 0.34))


def test_a_spread_of_one_is_uniform_at_any_step() -> None:
    for step in range(STEPS):
        assert timestep_bounds(decreasing(spread=1), step, STEPS) == pytest.approx((0.2, 0.9))


@pytest.mark.parametrize(("step", "steps", "expected"), [(0, 1, 0.9), (10, 11, 0.2), (25, 11, 0.2)])
def test_a_single_step_is_the_first_and_one_past_the_end_the_last(step: int, steps: int, expected: float) -> None:
    assert timestep_bounds(decreasing(spread=0), step, steps)[0] == pytest.approx(expected)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_draws_by_it_from_its_own_grid(diffusion: LatentDiffusion, score: str) -> None:
    guidance = CDSGuidance(decreasing(score=score), diffusion)
    generators = [Generator().manual_seed(0)] * 3000
    grid = score_class(score)().timestep_grid(1000)
    for step, (low, high) in ((0, (760, 900)), (10, (200, 340))):
        drawn = guidance._draw_timestep(generators, step, STEPS)
        assert low <= drawn.min() <= low + 3 and high - 3 <= drawn.max() <= high
        assert set(drawn.tolist()) <= set(grid)


def test_a_schedule_that_is_not_told_the_step_says_so(
    diffusion: LatentDiffusion, latents: tuple[Tensor, Tensor], texts: tuple[TextEmbedding, TextEmbedding]
) -> None:
    guidance = CDSGuidance(decreasing(), diffusion)
    with pytest.raises(
        UserError, match=r"timestep_schedule is 'decreasing', which depends on how far .* step and steps"
    ):
        guidance(*latents, *texts)
    guidance(*latents, *texts, timestep=torch.tensor([100, 200]))  # which leaves nothing to it


def test_an_image_s_edit_goes_from_much_noise_to_little(
    diffusion: LatentDiffusion,
    latents: tuple[Tensor, Tensor],
    texts: tuple[TextEmbedding, TextEmbedding],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timesteps: list[int] = []
    call: Callable[..., object] = CDSGuidance.__call__

    def spy(self: CDSGuidance, *args: object, **kwargs: object) -> object:
        out = call(self, *args, **kwargs)
        timesteps.append(out.timestep.tolist())
        return out

    monkeypatch.setattr(CDSGuidance, "__call__", spy)
    guidance = CDSGuidance(decreasing(spread=0, w_cut=0), diffusion)
    for _ in descend_latents(guidance, latents[0], *texts, steps=3):
        pass
    assert timesteps == [[900, 900], [550, 550], [200, 200]]


def test_the_configuration_is_read_at_each_call(
    diffusion: LatentDiffusion, latents: tuple[Tensor, Tensor], texts: tuple[TextEmbedding, TextEmbedding]
) -> None:
    guidance = CDSGuidance(CDSGuidanceConfig(), diffusion)
    guidance.config.score = "sds"
    assert list(guidance(*latents, *texts).terms) == ["sds_loss"]
    assert (guidance.config.guidance_scale, guidance.config.w_cut) == (100, 0)
    guidance.config.guidance_scale = -1.0
    with pytest.raises(UserError, match=r"guidance_scale is -1.0; it must be at least 0"):
        guidance(*latents, *texts)
    guidance.config = decreasing(spread=0, score="pds", w_cut=1.0)
    out = guidance(*latents, *texts, step=10, steps=STEPS)
    assert list(out.terms) == ["pds_loss", "cut_loss"] and out.timestep.tolist() == [201, 201]
