"""Patch relations: two pictures' patches are as alike, one to another, in both."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cds_nerf.guidance.patch_nce import unit_patches

NO_RELATION = -1e4
"""In place of a patch's similarity to itself: a logit whose probability is 0."""


def patch_relations_loss(
    source: Float[Tensor, "batch channels h w"],
    target: Float[Tensor, "batch channels h w"],
    positions: Int[Tensor, "batch patches"] | None = None,
    temperature: float = 0.07,
) -> Float[Tensor, " batch"]:
    """How far the relations among the target's patches are from those among the source's.

    1/N Σ_i Σ_j p_ij log(p_ij / q_ij), where p_ij ∝ exp(⟨a_i, a_j⟩ / temperature) over j ≠ i, with the unit vectors a of
    the source; q alike, of the target. After the semantic relation consistency of Jung, Kwon and Ye (CVPR 2022, arXiv
    2203.01532), with the Kullback-Leibler divergence.

    It is 0, and so is its gradient, where the target is as the source, which PatchNCE's is not; and features that move
    together, as those of an object that gets another colour do, keep their relations.

    Args:
        source: the features whose relations are kept.
        target: the features that are to have them.
        positions: the patches that take part, as indices into `h * w`; None for all.
        temperature: divides the cosine similarities.

    Returns:
        The mean divergence over the patches, for each batch item.
    """
    log_p, log_q = (_log_relations(features, positions, temperature) for features in (source, target))
    return (log_p.exp() * (log_p - log_q)).sum(dim=2).mean(dim=1)


def _log_relations(
    features: Float[Tensor, "batch channels h w"],
    positions: Int[Tensor, "batch patches"] | None,
    temperature: float,
) -> Float[Tensor, "batch patches patches"]:
    patches = unit_patches(features, positions)
    similarities = patches @ patches.transpose(1, 2) / temperature
    itself = torch.eye(similarities.shape[1], dtype=torch.bool, device=similarities.device)
    return similarities.masked_fill(itself, NO_RELATION).log_softmax(dim=2)
