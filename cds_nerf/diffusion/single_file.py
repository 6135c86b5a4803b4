"""A model in one .safetensors file, in the layout of Stable Diffusion's own checkpoints."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open
from torch import nn

from cds_nerf.diffusion.model_name import model_location
from cds_nerf.diffusion.supported import ADVICE, why_other_channels, why_other_class, why_other_classes
from cds_nerf.errors import UserAdvice, UserError, first_line

UNET = "model.diffusion_model."
"""How the names of a checkpoint's UNet weights begin."""
VAE = re.compile(r"(?:first_stage_model|vae)\.(.*)")
"""The names of its VAE weights."""
SECOND_TEXT_ENCODER = "conditioner.embedders.1."
"""How the names of the weights of SDXL's second text encoder begin."""
OTHER_KINDS = {
    r".*(?:lora|hada|lokr)_.*": "it is a LoRA, which is given as lora",
    r"emb_params|clip_[lg]": "it is a textual inversion, which is given as textual_inversion",
    r"(?:encoder|decoder)\.layers\.0\..*|\d+\.conv\.\d+\.weight": "it is an AutoencoderTiny (TAESD) alone",
    r"(?:encoder|decoder)\.conv_in\.weight": "it is a VAE alone",
    r"control_model\..*|controlnet_.*": "it is a ControlNet alone",
    r"down_blocks\..*|text_model\..*": "it is one part of a diffusers folder: give the folder",
    r"(?:model\.diffusion_model\.)?(?:joint|double)_blocks\..*": "it is a transformer, as SD3 and FLUX have",
}
"""What a file without a UNet is, by the name of a tensor in it."""
OTHER_VAES = {
    r"(?:encoder|decoder)\.layers\.\d+\..*": "AutoencoderTiny",
    r"decoder\.condition_encoder\..*": "AsymmetricAutoencoderKL",
    r"quantize\..*": "VQModel",
}
"""The class of a VAE that is no AutoencoderKL, by the name of a tensor in it."""
OTHER_SCHEDULES = {"edm_vpred.sigma_max": "CosXL", "edm_vpred.sigma_min": "CosXL", "edm_mean": "Playground v2.5"}
"""Tensors that mark a noise schedule without betas, and the models that have it."""
SD2_WEIGHT = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""A weight of Stable Diffusion 2.x that tells its two kinds apart."""
SD2_VELOCITY_DEVIATION = 0.09
"""Its standard deviation is greater in a model that predicts the velocity. ComfyUI tells them apart in this way."""


@dataclass(frozen=True)
class _Header:
    """What a checkpoint says of itself."""

    shapes: dict[str, list[int]]
    """Of all tensors."""
    metadata: dict[str, str]
    """What its maker wrote into it."""

    @classmethod
    def of(cls, file: Path) -> _Header:
        try:
            with safe_open(file, "pt") as weights:
                # safetensors knows no iteration but over keys()
                shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
                return cls(shapes, weights.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise UserError(f"the checkpoint {file} is damaged or no .safetensors file: {first_line(error)}") from error

    @property
    def is_xl(self) -> bool:
        return any(name.startswith(SECOND_TEXT_ENCODER) for name in self.shapes)

    @property
    def is_sd2(self) -> bool:
        """Whether its text embeddings are as wide as those of Stable Diffusion 2.x alone."""
        key = next((name for name in self.shapes if name.endswith("attn2.to_k.weight")), None)
        return not self.is_xl and key is not None and self.shapes[key][-1] == 1024

    def prediction_type(self) -> str | None:
        """What it says that it predicts, in the names of diffusers; None if it says nothing."""
        if "v_pred" in self.shapes:
            return "v_prediction"
        said = self.metadata.get("modelspec.prediction_type") or self.metadata.get("modelspec.predict_key")
        return {"v": "v_prediction", "epsilon": "epsilon"}.get(said or "")

    def why_unusable(self) -> str | None:
        """What is wrong with it; None if nothing."""
        if not any(name.startswith(f"{UNET}input_blocks.") for name in self.shapes):
            found = _first_match(OTHER_KINDS, self.shapes) or (
                "SD3, FLUX and PixArt have none at all, LoRAs and VAEs are no models of their own"
            )
            return f"has no UNet in the layout of Stable Diffusion: {found}"
        for marker, models in OTHER_SCHEDULES.items():
            if marker in self.shapes:
                return f"has {marker}, the noise schedule of {models} (EDM): {ADVICE}"
        with_sizes = f"{UNET}label_emb.0.0.weight" in self.shapes
        if with_sizes and any(name.startswith("conditioner.embedders.0.model.") for name in self.shapes):
            return f"has the second text encoder of SDXL alone, as its refiner does: {ADVICE}"
        vae = {match[1]: shape for name, shape in self.shapes.items() if (match := VAE.fullmatch(name))}
        if other := _first_match(OTHER_VAES, vae):
            return why_other_class("vae", other)
        unet_channels, vae_channels = (
            self.shapes.get(f"{UNET}input_blocks.0.0.weight"),
            vae.get("decoder.conv_in.weight"),
        )
        if unet_channels is None or vae_channels is None:  # damaged, which shows when it is loaded
            return None
        return why_other_channels(unet_channels[1], vae_channels[1])


def check_single_file(file: Path, config: str | Path | None) -> _Header:
    """Check a checkpoint file by what its header says, and the folder that its configuration is to come from.

    Args:
        file: the checkpoint.
        config: as for `load_single_file`.

    Raises:
        UserError: if the file is no checkpoint of Stable Diffusion, or the folder's configuration is another's.
    """
    if file.suffix != ".safetensors":
        raise UserError(f"the checkpoint {file} is no .safetensors file, and pickled weights are not loaded")
    header = _Header.of(file)
    if problem := header.why_unusable():
        raise UserError(f"the checkpoint {file} {problem}")
    if config is not None and (problem := why_other_classes(Path(model_location(config)))):
        raise UserError(f"model_config {config} {problem}")
    return header


def load_single_file(file: Path, dtype: torch.dtype, config: str | Path | None) -> dict[str, Any]:
    """The arguments of `LatentDiffusion` in a checkpoint file, on the CPU.

    What the checkpoint predicts, and whether its noise schedule ends in nothing but noise (arXiv 2305.08891), is as its
    marking tensors `v_pred` and `ztsnr` say, else as the configuration says that was given, else as its metadata say.

    Args:
        file: the checkpoint.
        dtype: of all its weights, but for a VAE of SDXL that overflows in float16.
        config: a diffusers folder or hub id whose configuration and tokenizers fit the checkpoint (its weights are not
            used); where not given, diffusers finds out the checkpoint's kind, and gets them from the hub or its cache.

    Raises:
        UserError: if the file is no such checkpoint, or its configuration cannot be had.
    """
    header = check_single_file(file, config)
    config = None if config is None else model_location(config)
    kind = StableDiffusionXLPipeline if header.is_xl else StableDiffusionPipeline
    unused = {"image_encoder": None, "feature_extractor": None} | ({} if header.is_xl else {"safety_checker": None})
    try:
        pipeline = kind.from_single_file(str(file), config=config, torch_dtype=dtype, **unused)
    except NotImplementedError as error:  # torch's, about weights that nothing has filled
        raise UserError(f"the checkpoint {file} has not all weights that its configuration says") from error
    except Exception as error:  # from the hub's client, diffusers, transformers or safetensors, each its own
        raise UserError(
            f"the checkpoint {file} does not load: {first_line(error)} (it needs a configuration that fits: where the "
            "Hugging Face Hub cannot give it, name a diffusers folder of the same kind with model_config)"
        ) from error
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    for name, part in parts.items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
            raise UserError(f"the checkpoint {file} has not all weights of the {name} that its configuration says")
    parts["scheduler"] = _noise_schedule(parts["scheduler"], header, file, config)
    if header.is_xl:
        parts["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
        if dtype == torch.float16 and parts["vae"].config["force_upcast"]:
            parts["vae"].to(torch.float32)
    return parts


def _noise_schedule(scheduler: Any, header: _Header, file: Path, config: str | Path | None) -> Any:
    """The scheduler of the configuration, or one that the checkpoint's own marks ask for."""
    prediction_type = header.prediction_type()
    if config is not None and "v_pred" not in header.shapes:  # metadata stay in what is merged of other models
        return scheduler
    if prediction_type is None and header.is_sd2 and SD2_WEIGHT in header.shapes:
        with safe_open(file, "pt") as weights:
            velocity = weights.get_tensor(SD2_WEIGHT).float().std(unbiased=False) > SD2_VELOCITY_DEVIATION
        prediction_type = "v_prediction" if velocity else "epsilon"
        warnings.warn(
            UserAdvice(
                f"the checkpoint {file} does not say what it predicts; its weights look like {prediction_type}: if "
                "that is wrong, name a diffusers folder with model_config whose scheduler says what is right"
            ),
            stacklevel=2,
        )
    if prediction_type is None:
        return scheduler
    ends_in_noise = {"v_pred", "ztsnr"} <= header.shapes.keys()
    settings = {"rescale_betas_zero_snr": True} if ends_in_noise else {}
    return DDIMScheduler.from_config(scheduler.config, prediction_type=prediction_type, **settings)


def _first_match(kinds: dict[str, str], names: Iterable[str]) -> str | None:
    """The kind whose pattern matches one of the names; None if none does."""
    return next((kind for pattern, kind in kinds.items() if any(re.fullmatch(pattern, name) for name in names)), None)
