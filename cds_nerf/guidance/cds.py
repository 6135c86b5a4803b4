"""Contrastive Denoising Score (Nam, Kwon, Park and Ye, CVPR 2024, arXiv 2311.18608).

    L = w_dds L_dds + w_cut L_cut

    L_dds = 2000 / (h w) Σ ẑ ⊙ g        g = ε̂(ẑ_t, ŷ) - ε̂(z_t, y), detached (see `dds`)

    L_cut = Σ_l Σ_p 1/N Σ_i -log( exp(⟨a_i, b_i⟩ / 0.07) / Σ_j exp(⟨a_i, b_j⟩ / 0.07) )

The Delta Denoising Score makes the change, and the contrastive loss keeps the structure: what the UNet's self-attention
sees at one place of the target must agree with what it sees there in the source more than with anything else. a_i and
b_i are unit vectors: the output of self-attention layer l of the up blocks, under the prompt, average-pooled over
patches of side p, at the same N drawn positions; a of the source, detached, and b of the target in the authors'
implementation, the other way round in the paper's equation. The gradient of L_cut goes through the UNet and ẑ_t to ẑ.
Another loss between the same patches can stand in its place (see `patch_relations`).

UNet samples a view: 3 without gradient (the source without and with its prompt, the target without) and 1 with it (the
target with its prompt), which serves both terms. Beside other scores the contrastive loss costs as little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cds_nerf.guidance.config import CDSGuidanceConfig
from cds_nerf.guidance.dds import DDS
from cds_nerf.guidance.patch_nce import patch_nce_loss
from cds_nerf.guidance.patch_relations import patch_relations_loss


class CDS(DDS):
    """Contrastive Denoising Score: the Delta Denoising Score with the contrastive loss beside it, weighted by 3."""

    w_cut = 3.0


def contrastive_loss(
    source_features: Iterable[Float[Tensor, "batch channels h w"]],
    target_features: Iterable[Float[Tensor, "batch channels h w"]],
    config: CDSGuidanceConfig,
    draw_positions: Callable[[int], Int[Tensor, "batch patches"] | None],
) -> Float[Tensor, " batch"]:
    """L_cut, for each item of the batch.

    Args:
        source_features: of each layer.
        target_features: of each layer; the loss is differentiable with respect to them.
        config: patch sizes, temperature, the loss between patches and whose are its query.
        draw_positions: given the number of patches, which take part (see `patch_nce_loss`).
    """
    compare = {"patch_nce": patch_nce_loss, "relations": patch_relations_loss}[config.contrastive_loss]
    losses = []
    for source, target in zip(source_features, target_features, strict=True):
        for size in config.patch_sizes:
            patches = F.avg_pool2d(source, size), F.avg_pool2d(target, size)
            first, second = patches if config.contrastive_query == "source" else patches[::-1]
            positions = draw_positions(first[0, 0].numel())
            losses.append(compare(first, second, positions, config.temperature))
    return sum(losses[1:], losses[0])
