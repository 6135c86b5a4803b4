"""Delta Denoising Score (Hertz, Aberman and Cohen-Or, ICCV 2023, arXiv 2304.07090).

    g = ε̂(ẑ_t, ŷ) - ε̂(z_t, y)

What the prior finds wrong with the target, less what it finds wrong with the source: the source is a real picture, so
that is the noise of the score itself. Timestep t and noise ε are the same for both:

    z_t = √ā_t z + √(1 - ā_t) ε        ẑ_t = √ā_t ẑ + √(1 - ā_t) ε        ε̂(z_t, y) = ε_∅ + s (ε_y - ε_∅)

UNet samples a view: 4 without gradient (source and target, each without and with its prompt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from cds_nerf.guidance.score import Score

if TYPE_CHECKING:
    from cds_nerf.guidance.noisy_pair import NoisyPair


class DDS(Score):
    """Delta Denoising Score; guidance scale 7.5, timesteps .05 to .95 (the CDS authors' implementation of it)."""

    term = "dds"

    def gradient(self, pair: NoisyPair) -> Float[Tensor, "batch channels h w"]:
        """ε̂(ẑ_t, ŷ) - ε̂(z_t, y)."""
        source, target = pair.noise_predictions()
        return target - source
