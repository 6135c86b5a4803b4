"""A region that was measured for each latent, brought to the edges that a view shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LATENTS = 2
"""How far from its border an edge may be that a region follows, in latents: a measured one is about one too wide."""
NOISE = 1e-3
"""Variance of colours, in 0..1, that is no edge."""
RAMP = (0.5, 0.8)
"""Values of the filtered region between which it rises from 0 to 1: of a band beyond an edge, less than half was in."""


def follow_edges(
    region: Float[Tensor, "1 height width"], picture: Float[Tensor, "3 height width"], latent_pixels: int
) -> Float[Tensor, "1 height width"]:
    """A region whose border lies on the edges of a picture, where there are some beside it.

    The guided filter (He, Sun and Tang, "Guided Image Filtering", ECCV 2010, equations 19 to 21): in each window
    around a pixel the region p is taken to be a·I + b of the picture's colours I, with

        a = (Σ + ε)⁻¹ cov(I, p),   b = mean(p) − a · mean(I),

    Σ the colours' covariance, and a pixel gets the mean of what its windows say. That is then made steeper.

    Args:
        region: in 0..1.
        picture: what it is a region of, in 0..1.
        latent_pixels: how many pixels wide a latent is.

    Returns:
        The region, in 0..1; where there is no edge it ends about a latent further in than before.
    """
    radius = LATENTS * latent_pixels

    def mean(values: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
        return F.avg_pool2d(values, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)

    colors, share = mean(picture), mean(region)
    products = (picture[:, None] * picture).flatten(0, 1)
    covariance = (mean(products) - (colors[:, None] * colors).flatten(0, 1)).unflatten(0, (3, 3)).permute(2, 3, 0, 1)
    with_region = (mean(picture * region) - colors * share).permute(1, 2, 0)
    slope = torch.linalg.solve(covariance + NOISE * torch.eye(3), with_region).permute(2, 0, 1)
    offset = share - (slope * colors).sum(dim=0, keepdim=True)
    filtered = (mean(slope) * picture).sum(dim=0, keepdim=True) + mean(offset)
    low, high = RAMP
    return ((filtered - low) / (high - low)).clamp(0, 1)
