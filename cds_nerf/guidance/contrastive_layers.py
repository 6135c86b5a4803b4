"""Which of a UNet's self-attentions take part in the contrastive loss."""

from __future__ import annotations

from cds_nerf.diffusion.self_attention import SelfAttention
from cds_nerf.errors import UserError
from cds_nerf.guidance.config import CDSGuidanceConfig


def select_layers(config: CDSGuidanceConfig, layers: list[SelfAttention]) -> list[SelfAttention]:
    """Those that both `contrastive_layers` and `contrastive_resolutions` leave, where they are given.

    Args:
        config: the choice.
        layers: all that there are, from coarse to fine.

    Raises:
        UserError: if one is chosen that there is not, or none is left.
    """
    if (greatest := max(config.contrastive_layers, default=0)) >= len(layers):
        raise UserError(
            f"contrastive_layers has {greatest}, but the up blocks of this UNet have self-attentions 0 to "
            f"{len(layers) - 1}"
        )
    resolutions = {layer.downsampling for layer in layers}
    if unknown := set(config.contrastive_resolutions) - resolutions:
        raise UserError(
            f"contrastive_resolutions has {min(unknown)}, but the self-attentions of this UNet's up blocks see feature "
            f"maps that are smaller than the latents by {', '.join(map(str, sorted(resolutions)))}"
        )
    chosen = [
        layer
        for index, layer in enumerate(layers)
        if (not config.contrastive_layers or index in config.contrastive_layers)
        and (not config.contrastive_resolutions or layer.downsampling in config.contrastive_resolutions)
    ]
    if not chosen:
        there = ", ".join(f"{index} ({layer.downsampling})" for index, layer in enumerate(layers))
        raise UserError(
            f"contrastive_layers {config.contrastive_layers} and contrastive_resolutions "
            f"{config.contrastive_resolutions} have no layer in common; layers and their resolutions are {there}"
        )
    return chosen
