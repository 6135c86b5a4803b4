"""Encoding a view such that its region alone is pulled."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def encode_within(
    relevance: Float[Tensor, "1 height width"] | None,
    image: Float[Tensor, "3 height width"],
    encode: Callable[[Float[Tensor, "1 3 height width"]], Float[Tensor, "1 channels h w"]],
    twice: bool = False,
) -> Float[Tensor, "1 channels h w"]:
    """The latents of a view, whose gradient is weighted by the relevance on its way back, and again in the view.

    A latent depends on pixels far around it, so that weights of latents alone would let a gradient out of the region.

    Args:
        relevance: the weights, in 0..1; None for 1 everywhere.
        image: the view, in 0..1.
        encode: the diffusion model's encoder.
        twice: encode once more for the gradient, rather than keep what the encoder computes until then.
    """
    if relevance is not None:
        image = torch.lerp(image.detach(), image, relevance)  # the same picture
    latents = checkpoint(encode, image[None], use_reentrant=False) if twice else encode(image[None])
    if relevance is not None:
        weights = at_latents(relevance, latents)
        latents.register_hook(lambda gradient: weights * gradient)
    return latents


def at_latents(
    relevance: Float[Tensor, "1 height width"], latents: Float[Tensor, "1 channels h w"]
) -> Float[Tensor, "1 1 h w"]:
    """A view's relevance as weights of its latents: the mean over the pixels of each."""
    return F.interpolate(relevance[None], latents.shape[-2:], mode="area").to(latents)
