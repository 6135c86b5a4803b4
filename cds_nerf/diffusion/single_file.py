"""A model in one .safetensors file, in the layout of Stable Diffusion's own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open
from torch import nn

from cds_nerf.errors import UserError, first_line

UNET = "model.diffusion_model.input_blocks."
"""How the names of a checkpoint's UNet weights begin."""
SECOND_TEXT_ENCODER = "conditioner.embedders.1."
"""How the names of the weights of SDXL's second text encoder begin."""


def load_single_file(file: Path, dtype: torch.dtype, config: str | None) -> dict[str, Any]:
    """The arguments of `LatentDiffusion` in a checkpoint file, on the CPU.

    Args:
        file: the checkpoint.
        dtype: of all its weights, but for a VAE of SDXL that overflows in float16.
        config: a diffusers folder or hub id whose configuration and tokenizers fit the checkpoint (its weights are not
            used); where not given, diffusers finds out the checkpoint's kind, and gets them from the hub or its cache.

    Raises:
        UserError: if the file is no such checkpoint, or its configuration cannot be had.
    """
    if file.suffix != ".safetensors":
        raise UserError(f"the checkpoint {file} is no .safetensors file, and pickled weights are not loaded")
    try:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
    except SafetensorError as error:
        raise UserError(f"the checkpoint {file} is damaged or no .safetensors file: {error}") from error
    if not any(name.startswith(UNET) for name in names):
        raise UserError(
            f"the checkpoint {file} has no UNet in the layout of Stable Diffusion: SD3, FLUX and PixArt have none at "
            "all, LoRAs and VAEs are no models of their own"
        )
    is_xl = any(name.startswith(SECOND_TEXT_ENCODER) for name in names)
    kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    unused = {"image_encoder": None, "feature_extractor": None} | ({} if is_xl else {"safety_checker": None})
    try:
        pipeline = kind.from_single_file(str(file), config=config, torch_dtype=dtype, **unused)
    except NotImplementedError as error:  # torch's, about weights that nothing has filled
        raise UserError(f"the checkpoint {file} has not all weights that its configuration says") from error
    except Exception as error:  # from the hub's client, diffusers, transformers or safetensors, each its own
        raise UserError(
            f"the checkpoint {file} does not load: {first_line(error)} (it needs a "
            "configuration that fits: where the Hugging Face Hub cannot give it, name a diffusers folder of the same "
            "kind with model_config)"
        ) from error
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    for name, part in parts.items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
            raise UserError(f"the checkpoint {file} has not all weights of the {name} that its configuration says")
    if is_xl:
        parts["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
        if dtype == torch.float16 and parts["vae"].config["force_upcast"]:
            parts["vae"].to(torch.float32)
    return parts
