"""Edits that stay within a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def latent_mask(mask: Bool[Tensor, "batch 1 height width"], multiple: int) -> Float[Tensor, "batch 1 h w"]:
    """1 for each latent with a pixel of the mask in it, 0 for the others; a latent is `multiple` pixels wide."""
    return F.max_pool2d(mask.float(), multiple)


def blend_within(
    mask: Bool[Tensor, "batch 1 height width"],
    image: Float[Tensor, "batch 3 height width"],
    edited: Float[Tensor, "batch 3 height width"],
    feather: float,
) -> Float[Tensor, "batch 3 height width"]:
    """The edited image within the mask and the image outside it.

    Outside, the pixels are the image's exactly; inside, the edit fades in over `feather` pixels from the seam.
    """
    return torch.where(mask, image.lerp(edited, _fade(mask, feather).to(image)), image)


def _fade(mask: Bool[Tensor, "batch 1 height width"], feather: float) -> Float[Tensor, "batch 1 height width"]:
    fades = []
    for region in mask[:, 0].cpu():
        if region.all():  # no seam to measure the distance to
            fades.append(torch.ones(region.shape))
        else:
            fades.append((torch.from_numpy(distance_transform_edt(region.numpy())).float() / (feather + 1)).clamp(0, 1))
    return torch.stack(fades)[:, None].to(mask.device)
