"""Colours at the ends of their range, which the sigmoid that makes them would hold fast.

A field's colours are sigmoids, and the blue of a red object is close to 0, where the sigmoid's slope c (1 - c) is close
to 0 as well. On its way to blue the object would lose its red long before any blue came, and what is black in all
channels would stay black.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.field_components.field_heads import FieldHead
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

LEAST_SLOPE = 0.06
"""Of 0.25, the sigmoid's greatest. With 0.03 a red cube still turned black; more lets an edit of the shape paint."""
GREATEST_GAIN = 10.0
"""Keeps gradients in half precision finite, and colours from running off to the very end of their range."""


def free_saturated_colors(model: nn.Module) -> None:
    """Let gradients pass the sigmoids of a model's colours as if their slope were at least `LEAST_SLOPE`.

    What the model renders stays as it is. Outputs that are no sigmoids are left alone.

    Args:
        model: a nerfstudio model, with tiny-cuda-nn or without.
    """
    for module in model.modules():
        if _ends_in_sigmoid(module):  # hooked itself, as heads share a sigmoid, and tiny-cuda-nn's is no module
            module.register_forward_hook(_free)


def _ends_in_sigmoid(module: nn.Module) -> bool:
    if isinstance(module, MLP):
        return isinstance(module.out_activation, nn.Sigmoid)
    return isinstance(module, FieldHead) and isinstance(module.activation, nn.Sigmoid)


def _free(_module: nn.Module, _inputs: tuple[Tensor, ...], color: Float[Tensor, "*batch 3"]) -> None:
    free_saturated(color)


def free_saturated(color: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The same colours, whose gradients pass the sigmoid that made them as if its slope were at least `LEAST_SLOPE`."""
    if color.requires_grad:
        slope = color.detach() * (1 - color.detach())
        gain = (LEAST_SLOPE / slope).clamp(1, GREATEST_GAIN)
        color.register_hook(lambda gradient: gain * gradient)
    return color


def clamp_with_way_back(
    values: Float[Tensor, "*batch"], least: float, greatest: float = math.inf
) -> Float[Tensor, "*batch"]:
    """Clamp values, and let those beyond the range have the gradients that lead back into it.

    Colours of Gaussians are not sigmoids, but sums of spherical harmonics clamped at 0: what is below it would have no
    gradient, and stay black in that channel.
    """
    return _ClampWithWayBack.apply(values, least, greatest)


class _ClampWithWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, least: float, greatest: float) -> Tensor:
        ctx.save_for_backward(values < least, values > greatest)
        return values.clamp(least, greatest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        is_below, is_above = ctx.saved_tensors
        leads_away = (is_below & (gradient > 0)) | (is_above & (gradient < 0))  # a descent would add to what is beyond
        return gradient.masked_fill(leads_away, 0), None, None
