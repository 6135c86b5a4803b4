"""Score Distillation Sampling (DreamFusion: Poole et al., ICLR 2023, arXiv 2209.14988, equation 3).

    g = (1 - ā_t) (ε̂(ẑ_t, ŷ) - ε)        ẑ_t = √ā_t ẑ + √(1 - ā_t) ε        ε̂(ẑ_t, ŷ) = ε_∅ + s (ε_ŷ - ε_∅)

It knows no source: nothing but the contrastive term, where there is one, and the start hold the edit to it.

UNet samples a view: 2 without gradient (the target without and with its prompt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from cds_nerf.guidance.score import Score

if TYPE_CHECKING:
    from cds_nerf.guidance.noisy_pair import NoisyPair


class SDS(Score):
    """Score Distillation Sampling; guidance scale 100, timesteps .02 to .98, weighted by 1 - ā_t."""

    term = "sds"
    guidance_scale = 100.0
    min_timestep = 0.02
    max_timestep = 0.98

    def gradient(self, pair: NoisyPair) -> Float[Tensor, "batch channels h w"]:
        """(1 - ā_t) (ε̂(ẑ_t, ŷ) - ε)."""
        return (1 - pair.alpha_cumprod(pair.timestep)) * (pair.target_noise_prediction() - pair.noise)
