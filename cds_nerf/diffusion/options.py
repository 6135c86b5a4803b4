"""The diffusion model as command lines offer it; imports torch only to load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cds_nerf.diffusion.model_name import DEFAULT_MODEL
from cds_nerf.errors import UserError, first_line

if TYPE_CHECKING:
    from cds_nerf.diffusion.latent_diffusion import LatentDiffusion


@dataclass
class DiffusionOptions:
    """Which diffusion model, where and how."""

    model: str = DEFAULT_MODEL
    """Diffusion model (SD 1.x, 2.x, XL): on the Hugging Face Hub, a diffusers folder, a .safetensors checkpoint, or
    "shapes" for the small one that comes with cds-nerf."""
    model_config: str | None = None
    """For a checkpoint: diffusers folder or hub id of a model of the same kind, for its configuration and tokenizer;
    by default found by the checkpoint's weights, on the hub or in its cache."""
    device: str | None = None
    """Where the model runs, such as cuda, cuda:1, mps or cpu; by default cuda where there is one."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Precision of the model's weights; by default float16 on cuda, else float32."""
    lora: tuple[str, ...] = ()
    """LoRAs to add to the model: .safetensors files, folders or hub ids, with :SCALE behind each or not."""
    textual_inversion: tuple[str, ...] = ()
    """Words to add to the model's prompts: .safetensors files, folders or hub ids, with =WORD behind each or not."""
    gradient_checkpointing: bool = False
    """Save memory: compute activations twice rather than keep them for the gradient."""
    vae_tiling: bool = False
    """Save memory: encode and decode large images tile by tile, with nearly the same result."""
    vae_slicing: bool = False
    """Save memory: encode and decode the images of a batch one after the other; one edited alone needs it not."""
    cpu_offload: bool = False
    """Save memory: keep on the device only the part of the model that runs."""

    def load(self) -> LatentDiffusion:
        """Load the model.

        Raises:
            UserError: if the device or the model cannot be had.
        """
        import torch

        from cds_nerf.diffusion.latent_diffusion import LatentDiffusion
        from cds_nerf.diffusion.memory import checkpoint_gradients, offload_to_cpu, slice_vae, tile_vae

        try:
            device = torch.empty(1, device=self.device or ("cuda" if torch.cuda.is_available() else "cpu")).device
        except (RuntimeError, AssertionError) as error:  # torch's answers to devices that it does not know or have
            raise UserError(f"device is {self.device!r}, which torch cannot use here: {first_line(error)}") from error
        diffusion = LatentDiffusion.from_pretrained(
            self.model,
            device="cpu" if self.cpu_offload else device,
            dtype=getattr(torch, self.dtype or ("float16" if device.type == "cuda" else "float32")),
            loras=self.lora,
            textual_inversions=self.textual_inversion,
            model_config=self.model_config,
        )
        if self.gradient_checkpointing:
            checkpoint_gradients(diffusion)
        if self.vae_tiling:
            tile_vae(diffusion)
        if self.vae_slicing:
            slice_vae(diffusion)
        if self.cpu_offload:
            offload_to_cpu(diffusion, device)
        return diffusion
