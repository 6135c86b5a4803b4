"""A score of your own: DreamCatalyst's (Kim et al., ICLR 2025, arXiv 2407.11394), weighted as its authors' code does.

    pip install ./examples/dreamcatalyst
    cds-nerf image cat.png --source-prompt "a cat" --target-prompt "a pig" --score dreamcatalyst \
        --timestep-schedule decreasing
    ns-train cds ... --pipeline.guidance.score dreamcatalyst --pipeline.guidance.timestep-schedule decreasing

    g = ψ(t) (ẑ - z) + χ(t) (ε̂(ẑ_t, ŷ) - ε̂(z_t, y))
    ψ(t) = 0.075 exp(t/T)        χ(t) = 0.2 + 0.8 (t/T)^(1/e)

Posterior Distillation Sampling with the weights of its two terms chosen anew, so that much noise changes more.

UNet samples a view: 4 without gradient, and with a contrastive weight 3 and 1 with it.
"""

import math

from torch import Tensor

from cds_nerf.guidance import NoisyPair, Score


class DreamCatalyst(Score):
    """DreamCatalyst's score; guidance scale 7.5, timesteps .2 to .9."""

    guidance_scale = 7.5
    min_timestep = 0.2
    max_timestep = 0.9

    def gradient(self, pair: NoisyPair) -> Tensor:
        """ψ(t) (ẑ - z) + χ(t) (ε̂(ẑ_t, ŷ) - ε̂(z_t, y))."""
        t = (pair.timestep / pair.training_timesteps)[:, None, None, None]
        source, target = pair.noise_predictions()
        return 0.075 * t.exp() * (pair.target - pair.source) + (0.2 + 0.8 * t ** (1 / math.e)) * (target - source)
