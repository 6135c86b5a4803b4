"""What a view should become, as a picture: the latents one step further, decoded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from cds_nerf.nerf.encoding import at_latents

WEIGHT = 2000
"""For each latent, as in the Delta Denoising Score and the keep loss, so that all grow alike with the view."""


def decoded_loss(
    relevance: Float[Tensor, "1 height width"] | None,
    image: Float[Tensor, "3 height width"],
    latents: Float[Tensor, "1 channels h w"],
    gradient: Float[Tensor, "1 channels h w"],
    decode: Callable[[Float[Tensor, "1 channels h w"]], Float[Tensor, "1 3 height width"]],
    step: float,
) -> Float[Tensor, ""]:
    """How far a view is from the picture of its latents after a step against the guidance's gradient.

        x̂ = D(z − step · (h w / 2000) · r ⊙ ∇L),   2000 / (h w) · Σ r ⊙ (x − x̂)²,

    with the latents z of the view x, the decoder D and the relevance r; x̂ is held fixed. After the loss in
    image space of HiFA (arXiv 2305.18766), whose x̂ is the picture of the denoised estimate.

    The encoder's transposed Jacobian, which takes a gradient back to the pixels otherwise, answers with a pattern that
    changes from pixel to pixel and with colours of its own; what the decoder shows of a step is a picture.

    Args:
        relevance: the weights, in 0..1; None for 1 everywhere.
        image: the view, in 0..1; the loss is differentiable with respect to it.
        latents: the view's, scaled.
        gradient: of the guidance's loss in them.
        decode: the diffusion model's decoder.
        step: length of the step; 1 is the difference of the noise predictions where the loss is the Delta Denoising
            Score of weight 1.
    """
    if relevance is None:
        relevance = torch.ones_like(image[:1])
    positions = latents[0, 0].numel()
    with torch.no_grad():
        target = decode(latents - step * positions / WEIGHT * at_latents(relevance, latents) * gradient)[0]
    return WEIGHT / positions * (relevance * (image - target.to(image.device)).square()).sum()
