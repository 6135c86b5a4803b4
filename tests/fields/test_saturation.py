"""A colour at the end of its range, such as the blue of a red object, can still be edited."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.field_components.field_heads import DensityFieldHead, RGBFieldHead
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

from cds_nerf.fields.saturation import GREATEST_GAIN, LEAST_SLOPE, free_saturated_colors


class Fused(nn.Module):
    """Stands in for a network of tiny-cuda-nn: its sigmoid is no module."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


def torch_mlp() -> nn.Module:
    mlp = MLP(3, 1, 3, out_activation=nn.Sigmoid())
    identity(mlp.layers[0])
    return mlp


def fused_mlp() -> nn.Module:
    mlp = MLP(3, 1, 3, out_activation=nn.Sigmoid())
    mlp.tcnn_encoding = Fused()
    return mlp


def rgb_head() -> nn.Module:
    head = RGBFieldHead(3)
    identity(head.net)
    return head


def identity(layer: nn.Linear) -> None:
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)


LOGITS = torch.tensor([[0.0, -1.0, 2.0], [-3.5, 3.5, -4.0], [-12.0, 40.0, -200.0]])


def slopes(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The colours of `LOGITS`, and the slopes with which gradients reach them."""
    logits = LOGITS.clone().requires_grad_()
    color = module(logits)
    color.sum().backward()
    return color.detach(), logits.grad


@pytest.mark.parametrize("make", [torch_mlp, fused_mlp, rgb_head])
def test_gradients_pass_a_saturated_colour_and_the_picture_stays(make):
    module = make()
    free_saturated_colors(nn.ModuleList([module]))
    color, slope = slopes(module)
    torch.testing.assert_close(color, LOGITS.sigmoid())
    own = color * (1 - color)
    torch.testing.assert_close(slope[0], own[0])  # in the middle of the range: the sigmoid's own
    torch.testing.assert_close(slope[1], torch.full((3,), LEAST_SLOPE))
    torch.testing.assert_close(slope[2], GREATEST_GAIN * own[2])  # at its very end: no further


def test_other_heads_and_models_keep_their_gradients():
    edited, other = rgb_head(), rgb_head()  # whose default activation is one and the same module
    density = DensityFieldHead(3)
    free_saturated_colors(nn.ModuleList([edited, density]))
    color, slope = slopes(other)
    torch.testing.assert_close(slope, color * (1 - color))
    assert not density._forward_hooks
