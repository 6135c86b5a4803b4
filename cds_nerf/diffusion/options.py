"""The diffusion model as command lines offer it, for images and for scenes; imports torch only to load it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cds_nerf.diffusion.model_name import DEFAULT_MODEL, model_location
from cds_nerf.diffusion.model_settings import ModelSettings
from cds_nerf.diffusion.prompts import NAMES, check_seen_prompts
from cds_nerf.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

    from cds_nerf.diffusion.latent_diffusion import LatentDiffusion


@dataclass
class DiffusionOptions:
    """Which diffusion model, where and how."""

    model: str = DEFAULT_MODEL
    """Diffusion model (SD 1.x, 2.x, XL): on the Hugging Face Hub, a diffusers folder, a .safetensors checkpoint, or
    "shapes" for the small one that comes with cds-nerf."""
    model_config: str | None = None
    """For a .safetensors checkpoint: diffusers folder or hub id of a model of the same kind, whose configuration and
    tokenizer are taken; by default found by the checkpoint's weights, on the hub or in its cache. Offline it is
    needed."""
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

    def anchored(self) -> DiffusionOptions:
        """The same options for a program that runs in another folder: what is here is named by its whole path."""
        return replace(
            self,
            model=self.model if model_location(self.model) != self.model else _whole_path(self.model),
            model_config=None if self.model_config is None else _whole_path(self.model_config),
            lora=tuple(_whole_path(lora, ":") for lora in self.lora),
            textual_inversion=tuple(_whole_path(inversion, "=") for inversion in self.textual_inversion),
        )

    def load(self, default_device: str | torch.device | None = None) -> LatentDiffusion:
        """Load the model.

        Args:
            default_device: where it runs if the options do not say; cuda where there is one, else the CPU.

        Raises:
            UserError: if the device or the model cannot be had.
        """
        from cds_nerf.diffusion.latent_diffusion import LatentDiffusion
        from cds_nerf.diffusion.memory import checkpoint_gradients, offload_to_cpu, slice_vae, tile_vae

        device = self._device(default_device)
        diffusion = LatentDiffusion.from_pretrained(
            self.model,
            device="cpu" if self.cpu_offload else device,
            dtype=self._dtype(device),
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

    def settings(self, default_device: str | torch.device | None = None) -> ModelSettings:
        """The settings that the model carries, which is downloaded for them where it is not on this machine.

        Raises:
            UserError: if the device or the model cannot be had, or its settings cannot be read.
        """
        from cds_nerf.diffusion.pretrained import model_settings

        return model_settings(self.model, self._dtype(self._device(default_device)))

    def check(
        self,
        source_prompt: str,
        target_prompt: str,
        names: tuple[str, str] = NAMES,
        default_device: str | torch.device | None = None,
    ) -> None:
        """Check all that can be checked without loading the model, which is downloaded where it is not there.

        Args:
            source_prompt: describes what there is.
            target_prompt: describes what it is to become.
            names: what the user calls the two.
            default_device: as for `load`.

        Raises:
            UserError: if the device, the model or an addition to it cannot be had, or the model sees no difference
                between the prompts.
        """
        from cds_nerf.diffusion.adapters import check_additions
        from cds_nerf.diffusion.pretrained import check_before_loading

        dtype = self._dtype(self._device(default_device))
        check_additions(self.lora, self.textual_inversion)
        tokenizers = check_before_loading(self.model, dtype, self.model_config)
        if tokenizers and not self.textual_inversion:  # whose words are no tokens yet
            check_seen_prompts(source_prompt, target_prompt, tokenizers, names)

    def _device(self, default: str | torch.device | None) -> torch.device:
        import torch

        device = self.device or default or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(1, device=device).device
        except (RuntimeError, AssertionError) as error:  # torch's answers to devices that it does not know or have
            raise UserError(f"device is {str(device)!r}, which torch cannot use here: {first_line(error)}") from error

    def _dtype(self, device: torch.device) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype or ("float16" if device.type == "cuda" else "float32"))


def _whole_path(text: str, separator: str | None = None) -> str:
    """A location, with what may stand behind a separator, as it is unless it is a path that exists."""
    location, behind = text, ""
    if separator is not None and separator in text and not Path(text).expanduser().exists():
        location, behind = text.rsplit(separator, 1)
        behind = separator + behind
    path = Path(location).expanduser()
    return f"{path.resolve()}{behind}" if path.exists() else text
