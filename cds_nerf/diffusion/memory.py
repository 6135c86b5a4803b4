"""Ways to run a diffusion model in less memory, each at a cost; `benchmarks/image_memory.py` measures both."""

from __future__ import annotations

from itertools import pairwise

import torch
from accelerate import cpu_offload_with_hook

from cds_nerf.diffusion.latent_diffusion import LatentDiffusion


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was too little memory, on a GPU or for the CPU."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):  # torch has no class for it
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


def slice_vae(diffusion: LatentDiffusion) -> None:
    """Encode and decode the images of a batch one after the other. The result is the same."""
    if diffusion.vae is not None:
        diffusion.vae.enable_slicing()


def offload_to_cpu(diffusion: LatentDiffusion, device: torch.device) -> None:
    """Keep on the device only the part that runs: text encoders, UNet or VAE. The result is the same.

    Only for editing latents: gradients cannot flow back through a part that has been taken off the device.
    """
    names = ("text_encoder", "text_encoder_2", "unet", "vae")
    parts = [part for part in (getattr(diffusion, name) for name in names) if part is not None]
    hooks = [cpu_offload_with_hook(part, device)[1] for part in parts]
    for hook, following in pairwise([*hooks, hooks[0]]):  # a ring: whichever comes next sends the one before away
        following.hook.prev_module_hook = hook
    diffusion.alphas_cumprod = diffusion.alphas_cumprod.to(device)
