"""Identity-preserving Distillation Sampling (Kim et al., CVPR 2025, arXiv 2502.19930, equations 6 to 9).

The prior does not see the source in its own noisy latents: x̂0(z_t, y) is not z. They are moved until it does better,

    z_t <- z_t - λ ∇_{z_t} ‖z - x̂0(z_t, y)‖        x̂0(z_t, y) = (z_t - √(1 - ā_t) ε̂(z_t, y)) / √ā_t

three times with λ = 1; the norm is taken over all of an item's elements. What noise they mean by then,

    ε* = (z_t - √ā_t z) / √(1 - ā_t)

is shared by source and target in a Delta Denoising Score: g = ε̂(ẑ_t*, ŷ) - ε̂(z_t*, y).

UNet samples a view: 6 with gradient (each time the source without and with its prompt) and 4 without, as of DDS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from cds_nerf.guidance.score import Score

if TYPE_CHECKING:
    from cds_nerf.guidance.noisy_pair import NoisyPair

ITERATIONS = 3
"""How often the noisy source latents are moved."""
STEP = 1.0
"""λ, how far they are moved each time."""


class IDS(Score):
    """Identity-preserving Distillation Sampling; guidance scale 7.5, timesteps .05 to .95."""

    term = "ids"

    def gradient(self, pair: NoisyPair) -> Float[Tensor, "batch channels h w"]:
        """ε̂(ẑ_t*, ŷ) - ε̂(z_t*, y)."""
        z, a = pair.source, pair.alpha_cumprod(pair.timestep)

        def distance(z_t: Tensor) -> Float[Tensor, " batch"]:
            x_0 = (z_t - (1 - a).sqrt() * pair.source_noise_prediction(z_t)) / a.sqrt()
            return (z - x_0).flatten(1).norm(dim=1)

        z_t = pair.add_noise(z)
        for _ in range(ITERATIONS):
            z_t = z_t - STEP * pair.gradient(distance, z_t)
        source, target = pair.noise_predictions(noise=(z_t - a.sqrt() * z) / (1 - a).sqrt())
        return target - source
