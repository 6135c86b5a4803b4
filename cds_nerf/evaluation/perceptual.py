"""LPIPS, the distance of two pictures in the features of a network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

from cds_nerf.errors import UserError

LEAST_SIDE = 32
"""AlexNet's features need pictures of so many pixels a side."""


def lpips(before: Float[Tensor, "3 height width"], after: Float[Tensor, "3 height width"]) -> Float[Tensor, ""]:
    """LPIPS (arXiv 1801.03924) with AlexNet of two pictures in 0..1; 0 for the same picture.

    Raises:
        UserError: if AlexNet's weights cannot be had, or the pictures are too small.
    """
    if min(before.shape[1:]) < LEAST_SIDE:
        raise UserError(f"LPIPS needs pictures of at least {LEAST_SIDE} pixels a side")
    try:
        return learned_perceptual_image_patch_similarity(before[None], after[None], net_type="alex", normalize=True)
    except OSError as error:  # urllib's errors are OSErrors
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"AlexNet's weights cannot be downloaded ({error}); offline, put them into {folder}") from error
