"""Ways to run a diffusion model in less memory, each at a cost; `benchmarks/image_memory.py` measures both."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn

from cds_nerf.diffusion.latent_diffusion import LatentDiffusion


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was too little memory, on a GPU or for the CPU."""
    in_words = ("DefaultCPUAllocator", "MPS backend out of memory")  # torch has no class for these
    if isinstance(error, RuntimeError) and any(words in str(error) for words in in_words):
        return True
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))


def checkpoint_gradients(diffusion: LatentDiffusion) -> None:
    """Keep few activations of the passes that need gradients, and compute the others a second time.

    That is one pass of the UNet in each call of the guidance, and of the VAE where an image is optimised through it.
    The gradient is the same.
    """
    diffusion.unet.enable_gradient_checkpointing()
    if diffusion.vae is not None:
        diffusion.vae.enable_gradient_checkpointing()


def tile_vae(diffusion: LatentDiffusion) -> None:
    """Encode and decode images tile by tile where they are larger than the VAE was trained on.

    Tiles overlap and are blended; the result is nearly the same.
    """
    if diffusion.vae is not None:
        diffusion.vae.enable_tiling()
        # For a gradient all tiles stay until the backward pass, and since they overlap they are more than the image.
        diffusion.vae.enable_gradient_checkpointing()


def slice_vae(diffusion: LatentDiffusion) -> None:
    """Encode and decode the images of a batch one after the other. The result is the same."""
    if diffusion.vae is not None:
        diffusion.vae.enable_slicing()


def offload_to_cpu(diffusion: LatentDiffusion, device: torch.device) -> None:
    """Keep on the device only the part that runs: text encoders, UNet or VAE. The result is the same.

    Gradients flow back through a part only while it is there: through the UNet within a call of the guidance, and
    through the VAE where `encode` is called under `torch.utils.checkpoint`, whose backward pass runs it once more.
    """
    for part in _parts(diffusion):
        part.to("cpu")
        add_hook_to_module(part, _RunsAlone(diffusion, device))
    diffusion.alphas_cumprod = diffusion.alphas_cumprod.to(device)


def _parts(diffusion: LatentDiffusion) -> list[nn.Module]:
    names = ("text_encoder", "text_encoder_2", "unet", "vae")
    return [part for part in (getattr(diffusion, name) for name in names) if part is not None]


class _RunsAlone(ModelHook):
    """Brings a part of a model to the device before it runs, after it has sent the others away."""

    def __init__(self, diffusion: LatentDiffusion, device: torch.device) -> None:
        self.diffusion = diffusion
        self.execution_device = device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for part in _parts(self.diffusion):
            if part is not module:
                part.to("cpu")
        module.to(self.execution_device)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
