"""Posterior Distillation Sampling (Koo, Park and Sung, CVPR 2024, arXiv 2311.13831).

The stochastic latent x̃ is the noise that a step of the reverse process from t to τ, the one before it on the grid,
must have drawn to come from z_t to z_τ; g is the target's less the source's:

    x̃(z, y) = (z_τ - c0 x̂0(z_t, y) - c1 z_t) / σ        x̂0(z_t, y) = (z_t - √(1 - ā_t) ε̂(z_t, y)) / √ā_t
    c0 = √ā_τ β_t / (1 - ā_t)      c1 = √α_t (1 - ā_τ) / (1 - ā_t)      σ² = β_t (1 - ā_τ) / (1 - ā_t)

Source and target share the noises of z_t and of z_τ. Both cancel, and no z_τ has to be made:

    g = ψ (ẑ - z) + χ (ε̂(ẑ_t, ŷ) - ε̂(z_t, y))
    ψ = (√ā_τ - c0 - c1 √ā_t) / σ      χ = c0 √(1 - ā_t) / (√ā_t σ)

a Delta Denoising Score, and a pull back to the source. As in the authors' implementation α_t and β_t are those of one
training step, while t and τ are two apart, on a grid of 500: with τ = t - 1, ψ would be 0.

UNet samples a view: 4 without gradient (source and target, each without and with its prompt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from cds_nerf.guidance.score import Score

if TYPE_CHECKING:
    from cds_nerf.guidance.noisy_pair import NoisyPair


class PDS(Score):
    """Posterior Distillation Sampling; guidance scale 100, timesteps .02 to .98 on a grid of 500."""

    term = "pds"
    guidance_scale = 100.0
    min_timestep = 0.02
    max_timestep = 0.98

    def timestep_grid(self, timesteps: int) -> range:
        """Every second of 1000 timesteps, from the first that has one before it: 3, 5, ..., 999."""
        return range(timesteps)[1 :: self._stride(timesteps)][1:]

    def gradient(self, pair: NoisyPair) -> Float[Tensor, "batch channels h w"]:
        """ψ (ẑ - z) + χ (ε̂(ẑ_t, ŷ) - ε̂(z_t, y))."""
        t = pair.timestep
        tau = t - self._stride(pair.training_timesteps)
        a_t, a_tau = pair.alpha_cumprod(t), pair.alpha_cumprod(tau)
        alpha_t = a_t / pair.alpha_cumprod(t - 1)
        beta_t = 1 - alpha_t
        c0 = a_tau.sqrt() * beta_t / (1 - a_t)
        c1 = alpha_t.sqrt() * (1 - a_tau) / (1 - a_t)
        sigma = (beta_t * (1 - a_tau) / (1 - a_t)).sqrt()
        psi = (a_tau.sqrt() - c0 - c1 * a_t.sqrt()) / sigma
        chi = c0 * (1 - a_t).sqrt() / (a_t.sqrt() * sigma)
        source, target = pair.noise_predictions()
        return psi * (pair.target - pair.source) + chi * (target - source)

    def _stride(self, timesteps: int) -> int:
        """How far τ is from t."""
        return max(timesteps // 500, 2)
