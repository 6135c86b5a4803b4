"""The diffusion model as command lines offer it; imports torch only to load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cds_nerf.errors import UserError

if TYPE_CHECKING:
    from cds_nerf.guidance import LatentDiffusion


@dataclass
class DiffusionOptions:
    """Which diffusion model, where and how."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Diffusion model (SD 1.x, 2.x, XL): on the Hugging Face Hub, a diffusers folder, or a .safetensors checkpoint."""
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

    def load(self) -> LatentDiffusion:
        """Load the model.

        Raises:
            UserError: if the device or the model cannot be had.
        """
        import torch

        from cds_nerf.guidance import LatentDiffusion

        try:
            device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # torch's answers to devices that it does not know or have
            first_line = str(error).splitlines()[0]
            raise UserError(f"device is {self.device!r}, which torch cannot use here: {first_line}") from error
        dtype = getattr(torch, self.dtype or ("float16" if device.type == "cuda" else "float32"))
        return LatentDiffusion.from_pretrained(
            self.model,
            device=device,
            dtype=dtype,
            loras=self.lora,
            textual_inversions=self.textual_inversion,
            model_config=self.model_config,
        )
