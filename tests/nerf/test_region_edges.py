"""Regions whose border lies on the edges that a view shows."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cds_nerf.nerf.region_edges import NOISE, RAMP, follow_edges


def disc(radius: float) -> Tensor:
    """Where a disc is, in a view of 48 x 64 pixels."""
    y, x = torch.meshgrid(torch.arange(48) - 24.0, torch.arange(64) - 30.0, indexing="ij")
    return (torch.hypot(x, y) <= radius).float()[None]


def picture_of(object_mask: Tensor, color: tuple[float, float, float]) -> Tensor:
    """The object before a floor with boards, all of it a little noisy."""
    boards = 0.5 + 0.04 * torch.sin(torch.arange(64) / 2.0)
    floor = torch.stack([boards, 0.6 * boards, 0.3 * boards])[:, None, :].expand(3, 48, 64)
    noise = 0.01 * torch.randn(3, 48, 64, generator=torch.Generator().manual_seed(0))
    return (torch.lerp(floor, torch.tensor(color)[:, None, None].expand(3, 48, 64), object_mask) + noise).clamp(0, 1)


def overlap(region: Tensor, mask: Tensor) -> float:
    one, other = region > 0.5, mask > 0.5
    return ((one & other).sum() / (one | other).sum()).item()


def wide_region(radius: float) -> Tensor:
    """As it is measured: for each latent of four pixels, and one of them too wide."""
    return F.interpolate(F.avg_pool2d(disc(radius + 4)[None], 4), (48, 64), mode="bilinear")[0]


@pytest.mark.parametrize("color", [(0.8, 0.1, 0.1), (0.1, 0.2, 0.8), (0.9, 0.9, 0.9)])
def test_region_that_is_a_latent_too_wide_ends_at_the_object(color):
    mask = disc(12)
    measured = wide_region(12)
    followed = follow_edges(measured, picture_of(mask, color), latent_pixels=4)
    assert overlap(measured, mask) < 0.65
    assert overlap(followed, mask) > 0.95
    outside = mask == 0
    assert followed[outside].sum() < 0.15 * measured[outside].sum()


def test_without_an_edge_the_region_ends_about_a_latent_further_in():
    measured = wide_region(12)
    followed = follow_edges(measured, torch.full((3, 48, 64), 0.4), latent_pixels=4)
    assert overlap(followed, disc(12)) > 0.75
    assert (followed[measured == 0] < 0.5).all()


def test_a_region_that_is_all_or_nothing_stays():
    picture = picture_of(disc(12), (0.8, 0.1, 0.1))
    assert torch.equal(follow_edges(torch.zeros(1, 48, 64), picture, 4), torch.zeros(1, 48, 64))
    assert torch.equal(follow_edges(torch.ones(1, 48, 64), picture, 4), torch.ones(1, 48, 64))


def test_filter_is_the_regression_in_each_window():
    """Against ridge regressions that are solved pixel by pixel."""
    generator = torch.Generator().manual_seed(1)
    picture, region = torch.rand(3, 9, 11, generator=generator), torch.rand(1, 9, 11, generator=generator)
    radius, (height, width) = 2, (9, 11)
    windows = {
        (y, x): (
            slice(max(y - radius, 0), min(y + radius + 1, height)),
            slice(max(x - radius, 0), min(x + radius + 1, width)),
        )
        for y in range(height)
        for x in range(width)
    }
    lines = {}
    for place, (rows, columns) in windows.items():
        colors = picture[:, rows, columns].flatten(1).double()
        values = region[0, rows, columns].flatten().double()
        centred = colors - colors.mean(dim=1, keepdim=True)
        count = colors.shape[1]
        slope = torch.linalg.solve(
            centred @ centred.T / count + NOISE * torch.eye(3).double(), centred @ (values - values.mean()) / count
        )
        lines[place] = slope, values.mean() - slope @ colors.mean(dim=1)
    expected = torch.empty(1, height, width)
    for (y, x), (rows, columns) in windows.items():
        window = product(range(rows.start, rows.stop), range(columns.start, columns.stop))
        around = [lines[place] for place in window]
        slope, offset = (torch.stack(part).mean(dim=0) for part in zip(*around, strict=True))
        expected[0, y, x] = slope @ picture[:, y, x].double() + offset
    expected = ((expected - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1)
    torch.testing.assert_close(follow_edges(region, picture, latent_pixels=1), expected, atol=1e-4, rtol=0)
