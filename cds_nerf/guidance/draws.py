"""What a step draws at random: timestep, noise and patches, each item with its own generator."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

Generators = Sequence[Generator | None]
"""One an item; None is torch's own. A draw is made on the generator's device (the CPU without one) and brought to the
CPU, so that a seed means the same on every device."""


def draw_timesteps(grid: range, least: float, most: float, generators: Generators) -> Int[Tensor, " batch"]:
    """Timesteps of a grid, each as likely as the others.

    Args:
        grid: which there are; ascending.
        least: the smallest of them that may be drawn; where there is none from it to `most`, the next above.
        most: the greatest.
        generators: one an item.
    """
    low = min(bisect_left(grid, least), len(grid) - 1)
    high = max(bisect_right(grid, most), low + 1)
    indices = [torch.randint(low, high, (1,), generator=g, device=g.device if g else "cpu").cpu() for g in generators]
    return grid.start + grid.step * torch.cat(indices)


def draw_noise(
    like: Float[Tensor, "batch channels h w"], generators: Generators
) -> Float[Tensor, "batch channels h w"]:
    """Standard normal noise in float32."""
    return torch.cat(
        [
            torch.randn((1, *like.shape[1:]), generator=g, device=g.device if g else "cpu", dtype=torch.float32).cpu()
            for g in generators
        ]
    )


def draw_positions(available: int, wanted: int, generators: Generators) -> Int[Tensor, "batch patches"] | None:
    """`wanted` distinct indices below `available` for each item, or None for all of them."""
    if wanted >= available:
        return None
    return torch.stack(
        [torch.randperm(available, generator=g, device=g.device if g else "cpu")[:wanted].cpu() for g in generators]
    )
