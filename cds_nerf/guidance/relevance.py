"""Where in an image two prompts disagree: what an edit from one to the other has to change, and what it has not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from cds_nerf.guidance.latent_diffusion import LatentDiffusion, TextEmbedding

NOISE_LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Fractions of the training timesteps at which the prompts' noise predictions are compared."""
DRAWS = 2
"""Draws of noise at each level."""
FULL_QUANTILE = 0.95
"""Share of the map that is below full relevance."""


@torch.no_grad()
def relevance_map(
    diffusion: LatentDiffusion,
    latents: Float[Tensor, "1 channels h w"],
    source_text: TextEmbedding,
    target_text: TextEmbedding,
    generator: Generator,
) -> Float[Tensor, "1 1 h w"]:
    """How much the noise prediction at each latent depends on which of two prompts describes the image.

    After "Watch Your Steps" (arXiv 2308.08947, section 4.1): the magnitude of the difference of two noise predictions
    of the same noisy latents. Here both are text-conditioned, and the mean is taken over several levels and draws of
    noise. It costs 16 UNet samples.

    Args:
        diffusion: the model.
        latents: scaled latents of the unedited image.
        source_text: the prompt that describes it.
        target_text: the prompt that describes the edit.
        generator: draws the noise.

    Returns:
        Relevance in 0..1, 1 where it is greatest; 0 everywhere for prompts that the model cannot tell apart.
    """
    latents = latents.to(diffusion.device, diffusion.loss_dtype)
    total = torch.zeros_like(latents[:, :1])
    for level in NOISE_LEVELS:
        timestep = torch.tensor([round(level * (len(diffusion.alphas_cumprod) - 1))])
        for _ in range(DRAWS):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noisy = diffusion.add_noise(latents, noise, timestep)
            source, target = (
                diffusion.predict_noise(noisy, timestep, text.conditional, text.pooled_conditional)
                for text in (source_text, target_text)
            )
            total += (target - source).norm(dim=1, keepdim=True)
    smooth = F.avg_pool2d(total, 3, stride=1, padding=1, count_include_pad=False)
    full = smooth.flatten().quantile(FULL_QUANTILE)
    return (smooth / full.clamp(min=torch.finfo(full.dtype).tiny)).clamp(max=1)
