"""Patch relations: their value, their gradient, and what they leave alone."""

import pytest
import torch
from plain_cds import plain_relations
from torch import Tensor

from cds_nerf.guidance.patch_nce import patch_nce_loss
from cds_nerf.guidance.patch_relations import patch_relations_loss

POSITIONS = torch.tensor([[0, 5, 11, 2], [7, 1, 3, 10]])


def feature_maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return source, target.requires_grad_()


@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["all patches", "chosen patches"])
def test_value_and_gradient_are_the_plain_divergence_of_each_patch(positions: Tensor | None) -> None:
    source, target = feature_maps()
    loss = patch_relations_loss(source, target, positions, temperature=0.3)
    chosen = torch.arange(12).expand(2, -1) if positions is None else positions
    plain = torch.stack([plain_relations(source[i], target[i], chosen[i], 0.3) for i in range(2)])
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), target)[0] for x in (loss, plain)))
    assert torch.autograd.gradcheck(lambda t: patch_relations_loss(source, t, positions, temperature=0.5), (target,))


def test_what_is_as_in_the_source_is_left_alone() -> None:
    features, _ = feature_maps()
    target = features.clone().requires_grad_()
    loss = patch_relations_loss(features, target)
    torch.testing.assert_close(loss, torch.zeros(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), target)
    assert gradient.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(patch_nce_loss(features, target).sum(), target)
    assert gradient.abs().max() > 1e-3


def test_features_that_move_together_keep_their_relations() -> None:
    features, _ = feature_maps()
    turned = torch.einsum("dc,bchw->bdhw", torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0], features)
    torch.testing.assert_close(patch_relations_loss(features, turned), torch.zeros(2, dtype=torch.float64))
    assert (patch_nce_loss(features, turned) > patch_nce_loss(features, features) + 0.1).all()


def test_a_single_patch_has_no_relations() -> None:
    assert patch_relations_loss(torch.ones(1, 5, 1, 1), -torch.ones(1, 5, 1, 1)).item() == 0


def test_a_feature_of_zeros_has_a_finite_gradient() -> None:
    target = torch.zeros(1, 5, 3, 4, requires_grad=True)
    patch_relations_loss(torch.randn(1, 5, 3, 4), target).sum().backward()
    assert target.grad is not None and target.grad.isfinite().all()
