"""Self-attention features of a UNet's up blocks, taken with forward hooks.

Hooks leave the attention processors alone, and so the fused attention on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from cds_nerf.errors import UserError


@dataclass(frozen=True)
class SelfAttention:
    """One self-attention of an up block."""

    transformer: Transformer2DModel
    """The transformer around it."""
    attention: nn.Module
    """The layer, `attn1`."""
    downsampling: int
    """By how much smaller than the latents its feature map is."""


def self_attention_layers(unet: UNet2DConditionModel) -> list[SelfAttention]:
    """The self-attentions (`attn1`) of the up blocks in the order they run, from coarse to fine.

    Raises:
        UserError: if there are none.
    """
    layers: list[SelfAttention] = []
    for following, up_block in reversed(list(enumerate(reversed(unet.up_blocks)))):
        for module in up_block.modules():
            if isinstance(module, Transformer2DModel):
                attentions = [block.attn1 for block in module.transformer_blocks]
                # Every up block but the last doubles the resolution at its end.
                layers += [SelfAttention(module, a, 2**following) for a in attentions if not a.is_cross_attention]
    if not layers:
        raise UserError(
            f"the up blocks of this UNet ({', '.join(type(block).__name__ for block in unet.up_blocks)}) have no "
            "self-attention, which the contrastive loss needs: use another model, or w_cut=0"
        )
    return layers


@contextmanager
def self_attention_features(
    unet: UNet2DConditionModel, rows: slice = slice(None), layers: Sequence[SelfAttention] | None = None
) -> Iterator[list[Float[Tensor, "rows channels h w"]]]:
    """Collect the up blocks' self-attention outputs (after the output projection) of the one UNet call made within.

    After the last of them nothing is left in the UNet that a loss on these features depends on, so that from there to
    the end of the context no autograd graph is recorded. Under `unet.enable_gradient_checkpointing()` the features are
    part of the graph as ever; what is computed anew on the way back is so after the context, without the hooks.

    Args:
        unet: the UNet that is called within the context.
        rows: which samples of the batch to keep.
        layers: which self-attentions; all of `self_attention_layers` by default.

    Yields:
        A list that the call fills, one entry a layer, from coarse to fine.
    """
    layers = self_attention_layers(unet) if layers is None else layers
    features: list[Tensor] = []
    sizes: list[torch.Size] = []

    def note_size(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(args[0].shape[-2:])

    def collect(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        features.append(output[rows].transpose(1, 2).unflatten(2, sizes[-1]))
        if len(features) == len(layers):
            torch.set_grad_enabled(False)

    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # restores the mode at the end
        for transformer in {id(layer.transformer): layer.transformer for layer in layers}.values():
            stack.callback(transformer.register_forward_pre_hook(note_size).remove)
        for layer in layers:
            stack.callback(layer.attention.register_forward_hook(collect).remove)
        yield features
