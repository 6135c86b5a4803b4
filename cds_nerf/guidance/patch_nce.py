"""PatchNCE: corresponding patches of two feature maps agree more than any others do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cds_nerf.transfers import send


def patch_nce_loss(
    query: Float[Tensor, "batch channels h w"],
    key: Float[Tensor, "batch channels h w"],
    positions: Int[Tensor, "batch patches"] | None = None,
    temperature: float = 0.07,
) -> Float[Tensor, " batch"]:
    """PatchNCE loss of CUT (arXiv 2007.15651, equation 3) between two feature maps.

    Each query patch is classified among all key patches by cosine similarity; its own position is the right class.

    Args:
        query: the features that are classified.
        key: the features that are the classes: one positive and `patches - 1` negatives for each query.
        positions: the patches that take part, as indices into `h * w`; None for all.
        temperature: divides the cosine similarities.

    Returns:
        The mean cross-entropy over the patches, for each batch item.
    """
    query, key = (unit_patches(features, positions) for features in (query, key))
    logits = query @ key.transpose(1, 2) / temperature
    return -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean(dim=1)


def unit_patches(
    features: Float[Tensor, "batch channels h w"], positions: Int[Tensor, "batch patches"] | None
) -> Float[Tensor, "batch patches channels"]:
    """The features of each patch, divided by their norm.

    Args:
        features: a patch at each place.
        positions: the patches that are wanted, as indices into `h * w`; None for all.
    """
    patches = features.flatten(2).transpose(1, 2)
    if positions is not None:
        patches = torch.take_along_dim(patches, send(positions, patches.device)[:, :, None], dim=1)
    return F.normalize(patches, dim=2)
