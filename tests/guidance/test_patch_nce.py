"""PatchNCE: its value, its gradient, and what it prefers."""

import pytest
import torch
from plain_cds import plain_patch_nce
from torch import Tensor

from cds_nerf.guidance.patch_nce import patch_nce_loss

POSITIONS = torch.tensor([[0, 5, 11, 2], [7, 1, 3, 10]])


def feature_maps(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 5, 3, 4, generator=generator, dtype=dtype) for _ in range(2))
    return query.requires_grad_(), key.requires_grad_()


@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["all patches", "chosen patches"])
def test_gradient_is_that_of_finite_differences(positions: Tensor | None) -> None:
    query, key = feature_maps()
    assert torch.autograd.gradcheck(lambda q, k: patch_nce_loss(q, k, positions, temperature=0.5), (query, key))
    assert torch.autograd.gradcheck(lambda q, k: patch_nce_loss(q, k, positions), (query, key))


@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["all patches", "chosen patches"])
def test_value_is_the_plain_cross_entropy_of_each_patch(positions: Tensor | None) -> None:
    query, key = feature_maps()
    loss = patch_nce_loss(query, key, positions, temperature=0.07)
    chosen = torch.arange(12).expand(2, -1) if positions is None else positions
    plain = torch.stack([plain_patch_nce(query[i], key[i], chosen[i], 0.07) for i in range(2)])
    torch.testing.assert_close(loss, plain)
    for gradients in zip(*(torch.autograd.grad(x.sum(), (query, key)) for x in (loss, plain)), strict=True):
        torch.testing.assert_close(*gradients)


def test_the_right_correspondence_costs_least() -> None:
    features, _ = feature_maps()
    shuffled = features.flatten(2).flip(2).unflatten(2, (3, 4))
    assert (patch_nce_loss(features, features) < patch_nce_loss(features, shuffled)).all()


def test_the_length_of_a_feature_does_not_matter() -> None:
    query, key = feature_maps()
    lengths = torch.linspace(0.5, 20, 12, dtype=torch.float64).unflatten(0, (3, 4))
    torch.testing.assert_close(patch_nce_loss(query * lengths, key), patch_nce_loss(query, key * lengths))


def test_a_feature_of_zeros_has_a_finite_gradient() -> None:
    query = torch.zeros(1, 5, 3, 4, requires_grad=True)
    patch_nce_loss(query, torch.randn(1, 5, 3, 4)).sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()
