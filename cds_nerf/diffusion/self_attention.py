"""Self-attention features of a UNet's up blocks, taken with forward hooks.

Hooks leave the attention processors alone, and so the fused attention on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from cds_nerf.errors import UserError


def self_attention_layers(unet: UNet2DConditionModel) -> list[tuple[Transformer2DModel, nn.Module]]:
    """The self-attentions (`attn1`) of the up blocks in the order they run, each with the transformer around it.

    Raises:
        UserError: if there are none.
    """
    layers: list[tuple[Transformer2DModel, nn.Module]] = []
    for module in unet.up_blocks.modules():
        if isinstance(module, Transformer2DModel):
            attentions = [block.attn1 for block in module.transformer_blocks]
            layers += [(module, attention) for attention in attentions if not attention.is_cross_attention]
    if not layers:
        raise UserError(
            f"the up blocks of this UNet ({', '.join(type(block).__name__ for block in unet.up_blocks)}) have no "
            "self-attention, which the contrastive loss needs: use another model, or w_cut=0"
        )
    return layers


@contextmanager
def self_attention_features(
    unet: UNet2DConditionModel, rows: slice = slice(None)
) -> Iterator[list[Float[Tensor, "rows channels h w"]]]:
    """Collect the up blocks' self-attention outputs (after the output projection) of the one UNet call made within.

    After the last of them nothing is left in the UNet that a loss on these features depends on, so that from there to
    the end of the context no autograd graph is recorded. Under `unet.enable_gradient_checkpointing()` the features are
    part of the graph as ever; what is computed anew on the way back is so after the context, without the hooks.

    Args:
        unet: the UNet that is called within the context.
        rows: which samples of the batch to keep.

    Yields:
        A list that the call fills, one entry a layer, from coarse to fine.
    """
    layers = self_attention_layers(unet)
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
        for transformer in {id(transformer): transformer for transformer, _ in layers}.values():
            stack.callback(transformer.register_forward_pre_hook(note_size).remove)
        for _, attention in layers:
            stack.callback(attention.register_forward_hook(collect).remove)
        yield features
