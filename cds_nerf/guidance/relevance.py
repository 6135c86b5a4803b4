"""Where in an image two prompts disagree: what an edit from one to the other has to change, and what it has not."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from cds_nerf.diffusion.latent_diffusion import LatentDiffusion, TextEmbedding

NOISE_LEVELS = (0.3, 0.5, 0.7)
"""Fractions of the training timesteps at which the prompts' noise predictions are compared, all at once."""
PEAK_QUANTILE = 0.95
"""Of the differences over the image: what counts as great."""
RAMP = (0.3, 0.7)
"""Fractions of the peak between which relevance rises from 0 to 1: the prompts differ a little everywhere."""


@torch.no_grad()
def relevance_map(
    diffusion: LatentDiffusion,
    latents: Float[Tensor, "1 channels h w"],
    source_text: TextEmbedding,
    target_text: TextEmbedding,
    generator: Generator,
) -> Float[Tensor, "1 1 h w"]:
    """Where the noise prediction depends on which of two prompts describes the image.

    After "Watch Your Steps" (arXiv 2308.08947, section 4.1): the magnitude of the difference of two noise predictions
    of the same noisy latents. Here both are text-conditioned, and the mean is taken over several levels and draws of
    noise. It costs 6 UNet samples, in one batch.

    Args:
        diffusion: the model.
        latents: scaled latents of the unedited image.
        source_text: the prompt that describes it.
        target_text: the prompt that describes the edit.
        generator: draws the noise.

    Returns:
        Relevance in 0..1: 1 where the prompts disagree much, 0 where they do not.
    """
    latents = latents.to(diffusion.device, diffusion.loss_dtype)
    texts = (source_text, target_text)
    levels = len(NOISE_LEVELS)
    embedding = torch.cat([text.conditional.expand(levels, -1, -1) for text in texts])
    pooled = [text.pooled_conditional.expand(levels, -1) for text in texts if text.pooled_conditional is not None]
    timestep = torch.tensor([round(level * (len(diffusion.alphas_cumprod) - 1)) for level in NOISE_LEVELS])
    noise = torch.randn((levels, *latents.shape[1:]), generator=generator).to(latents)
    noisy = diffusion.add_noise(latents, noise, timestep)
    source, target = diffusion.predict_noise(
        noisy.repeat(2, 1, 1, 1), timestep.repeat(2), embedding, torch.cat(pooled) if pooled else None
    ).split(levels)
    total = (target - source).norm(dim=1, keepdim=True).sum(dim=0, keepdim=True)
    smooth = F.avg_pool2d(total, 3, stride=1, padding=1, count_include_pad=False)
    peak = smooth.flatten().quantile(PEAK_QUANTILE).clamp(min=torch.finfo(smooth.dtype).tiny)
    low, high = RAMP
    return ((smooth / peak - low) / (high - low)).clamp(0, 1)


def nothing(text: TextEmbedding) -> TextEmbedding:
    """The empty prompt, with which a text is compared to find what it speaks of."""
    return replace(text, conditional=text.unconditional, pooled_conditional=text.pooled_unconditional)
