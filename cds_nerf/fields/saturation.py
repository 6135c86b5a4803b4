"""Colours at the ends of their range, which the sigmoid that makes them would hold fast.

A field's colours are sigmoids, and the blue of a red object is close to 0, where the sigmoid's slope c (1 - c) is close
to 0 as well. On its way to blue the object would lose its red long before any blue came, and what is black in all
channels would stay black.
"""

from __future__ import annotations

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
    if color.requires_grad:
        slope = color.detach() * (1 - color.detach())
        gain = (LEAST_SLOPE / slope).clamp(1, GREATEST_GAIN)
        color.register_hook(lambda gradient: gain * gradient)
