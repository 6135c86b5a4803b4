"""What each step holds to the source in views that it does not draw."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_edit import paint_left_half, run

from cds_nerf.nerf.held_rays import VIEWS, held_errors

SHAPE = (5, 7)


class PictureField:
    """Shows fixed pictures, which are its parameters."""

    def __init__(self, pictures: torch.Tensor) -> None:
        self.pictures = pictures.requires_grad_()

    def render_pixels(self, camera: Any, index: int, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        return self.pictures[index].flatten(1)[:, pixels]


@pytest.fixture
def world() -> SimpleNamespace:
    draw = torch.Generator().manual_seed(3)
    pictures, sources = torch.rand(2, 4, 3, *SHAPE, generator=draw)
    return SimpleNamespace(
        field=PictureField(pictures), sources=sources, regions=torch.rand(4, 1, *SHAPE, generator=draw)
    )


def errors(world: SimpleNamespace, known: list[int], seed: int, rays: int = 64, **more: Any) -> list[torch.Tensor]:
    def region(index: int) -> torch.Tensor:
        return world.regions[index]

    return list(
        held_errors(
            world.field, [None] * 4, known, region, lambda index: world.sources[index], rays=rays, seed=seed, **more
        )
    )


def test_held_rays_estimate_the_error_outside_of_the_region_and_its_gradient(world):
    known = [0, 2, 3]
    squared = (world.field.pictures - world.sources).square().sum(dim=1, keepdim=True)
    true = ((1 - world.regions) * squared).mean(dim=(1, 2, 3))[known].mean()
    (true_gradient,) = torch.autograd.grad(true, world.field.pictures)
    estimates = [torch.stack(errors(world, known, seed)).sum() for seed in range(400)]
    (gradient,) = torch.autograd.grad(torch.stack(estimates).mean(), world.field.pictures)
    assert torch.stack(estimates).mean().item() == pytest.approx(true.item(), rel=0.02)
    assert (gradient - true_gradient).norm() < 0.1 * true_gradient.norm()
    assert gradient[1].abs().max() == 0  # not among those that may be drawn


def test_nothing_within_the_region_is_held(world):
    world.regions[:, :, :, :4] = 1
    torch.stack(errors(world, [0, 1, 2, 3], seed=1)).sum().backward()
    gradient = world.field.pictures.grad
    assert gradient[..., :4].abs().max() == 0 and gradient[..., 4:].abs().max() > 0


def test_views_that_are_all_region_and_fields_without_single_pixels_hold_nothing(world):
    world.regions[:] = 1
    assert errors(world, [0, 1], seed=0) == []
    world.regions[:] = 0
    world.field.render_pixels = lambda *_: None
    assert errors(world, [0, 1], seed=0) == []


def test_several_devices_hold_what_one_would(world):
    parts = [errors(world, [0, 1, 2, 3], seed=5, draws=range(VIEWS)[rank::3]) for rank in range(3)]
    together = torch.stack([error for part in parts for error in part])
    torch.testing.assert_close(together.sum(), torch.stack(errors(world, [0, 1, 2, 3], seed=5)).sum())


def test_rays_are_as_many_as_asked_for_or_a_few_more(world, monkeypatch):
    asked, render = [], world.field.render_pixels
    monkeypatch.setattr(world.field, "render_pixels", lambda *a: asked.append(len(a[2])) or render(*a), raising=False)
    errors(world, [0, 1, 2, 3], seed=0, rays=20)
    assert asked == [3] * VIEWS


def test_pixels_of_a_ray_field_are_those_of_its_whole_view(edit_config, monkeypatch):
    pipeline = run(edit_config(max_num_iterations=1)).pipeline
    pipeline.model.eval()
    monkeypatch.setattr(pipeline.model, "train", lambda: None)  # in training it jitters its samples
    pixels = torch.tensor([5, 0, 5, 17])
    view, _ = pipeline.render_view(2, seed=1)
    seen = pipeline.field.render_pixels(pipeline.views[2], 2, pixels, seed=1)
    torch.testing.assert_close(seen, view.flatten(1)[:, pixels])


def test_step_of_an_edit_holds_other_views_before_it_looks_at_its_own(edit_config):
    config = edit_config(max_num_iterations=2)
    pipeline = run(config).pipeline
    paint_left_half(config.get_base_dir() / "source" / "relevance")
    gradients, losses = {}, {}
    for rays in (0, 64):
        pipeline.config.held_rays = rays
        pipeline.zero_grad()
        losses[rays] = pipeline.get_train_loss_dict(step=1)[1]["keep_loss"].item()
        gradients[rays] = sum(float(p.grad.abs().sum()) for p in pipeline.parameters() if p.grad is not None)
    assert gradients[0] == 0 and gradients[64] > 0
    assert losses[64] > losses[0] > 0
