"""The parts of a pretrained Stable Diffusion model, and one clear sentence where they cannot be had."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cds_nerf.diffusion.model_name import model_location
from cds_nerf.diffusion.single_file import load_single_file
from cds_nerf.errors import UserError, first_line

FILES = (
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)
"""What a model's folder must have, besides the tokenizers' vocabularies."""
XL_FILES = (
    "tokenizer_2/tokenizer_config.json",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
)
"""What SDXL's folder must have besides."""
VOCABULARY = ("vocab.json", "merges.txt")
"""A tokenizer's vocabulary, which `tokenizer.json` may hold instead."""
HALF = "fp16"
"""The variant of weight files in half precision, which models may have besides the others or instead."""
ADVICE = "use Stable Diffusion 1.x, 2.x or XL base, or a model fine-tuned from them"
"""What to do about a model that cannot be used."""
HUB_TIMEOUT = 10.0
"""Seconds that the Hugging Face Hub has to answer the first question."""


def load_parts(model: str | Path, dtype: torch.dtype, config: str | Path | None = None) -> dict[str, Any]:
    """The UNet, scheduler, VAE, text encoders and tokenizers of a folder, a file or a hub id, on the CPU.

    They are the arguments of `LatentDiffusion`. A VAE of SDXL that overflows in float16 is loaded in float32.

    Args:
        model: a diffusers folder, a .safetensors file in Stable Diffusion's own layout, or a hub id.
        dtype: of all weights but those.
        config: for a file, see `load_single_file`.

    Raises:
        UserError: if the model cannot be had; the message says why and what to do.
    """
    model = model_location(model)
    if (file := Path(model).expanduser()).is_file():
        return load_single_file(file, dtype, None if config is None else str(config))
    if config is not None:
        raise UserError(f"model_config is {config}, but {model} is no single file: a folder has its own configuration")
    folder = model_folder(model, dtype)
    is_xl = (folder / "text_encoder_2").is_dir()
    variant = _variant(_files(folder), dtype)
    parts: dict[str, Any] = {}
    try:
        parts["scheduler"] = _load_scheduler(folder)
        vae_config = AutoencoderKL.load_config(folder, subfolder="vae")
        overflows = is_xl and dtype == torch.float16 and vae_config.get("force_upcast", True)
        models = [
            ("text_encoder", CLIPTextModel, {"dtype": dtype}),
            ("vae", AutoencoderKL, {"torch_dtype": torch.float32 if overflows else dtype}),
            ("unet", UNet2DConditionModel, {"torch_dtype": dtype}),
        ]
        if is_xl:
            models.append(("text_encoder_2", CLIPTextModelWithProjection, {"dtype": dtype}))
            parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer_2")
            parts["force_zeros_for_empty_prompt"] = _pipeline_config(folder).get("force_zeros_for_empty_prompt", True)
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        for name, kind, precision in models:
            parts[name], loading = kind.from_pretrained(
                folder, subfolder=name, variant=variant, use_safetensors=True, output_loading_info=True, **precision
            )
            if loading["missing_keys"]:  # both libraries only log this, and leave random weights
                raise ValueError(f"the weights of {name} lack {sorted(loading['missing_keys'])[0]}")
    except UserError:
        raise
    except Exception as error:  # a broken file shows in the exceptions of four libraries
        raise UserError(
            f"the diffusion model in {folder} does not load: {first_line(error)}; "
            "if its files are damaged or do not belong together, get them anew"
        ) from error
    return parts


def _load_scheduler(folder: Path) -> DDIMScheduler:
    """The noise schedule, whichever sampler the model comes with."""
    sampler = DDIMScheduler.load_config(folder, subfolder="scheduler").get("_class_name", "")
    if sampler.startswith(("EDM", "FlowMatch")):  # their configurations hold no betas
        raise UserError(f"the diffusion model in {folder} has the noise schedule {sampler}: {ADVICE}")
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def _pipeline_config(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def model_folder(model: str | Path, dtype: torch.dtype) -> Path:
    """The local folder of a model: itself, in the Hugging Face Hub's cache, or downloaded into that cache.

    What is cached as a whole is used without asking the hub. For float16 the weight files in half precision are
    downloaded where there are any, for other precisions only where there are no others.

    Raises:
        UserError: if the model cannot be had or is of another kind; the message says why and what to do.
    """
    name = model_location(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if problem := why_unusable(_files(folder)):
            raise UserError(f"the diffusion model in {name} {problem}")
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(
            f"there is no folder {name}, and no file: give a diffusers folder, a .safetensors checkpoint, or a model "
            "on the Hugging Face Hub as OWNER/NAME"
        )
    try:
        cached = try_to_load_from_cache(name, "unet/config.json")
        if isinstance(cached, str) and not why_unusable(_files(Path(cached).parents[1])):
            return Path(cached).parents[1]
        on_hub = {file.rfilename for file in model_info(name, timeout=HUB_TIMEOUT).siblings or ()}
        if problem := why_unusable(on_hub):
            raise UserError(f"the diffusion model {name} on the Hugging Face Hub {problem}")
        needed = _needed(on_hub, _variant(on_hub, dtype))
        return Path(snapshot_download(name, allow_patterns=[*needed, "tokenizer*/*", "model_index.json"]))
    except UserError:
        raise
    except Exception as error:  # the hub's client lets those of its HTTP library through, which differs by version
        raise UserError(_why_unavailable(name, error)) from error


def why_unusable(files: Iterable[str]) -> str | None:
    """What keeps a folder with these files from being a Stable Diffusion model that can be loaded; None if nothing."""
    files = set(files)
    folders = {file.split("/")[0] for file in files if "/" in file}
    if "transformer" in folders:
        return f"has a transformer in place of the UNet, as SD3, FLUX and PixArt do: {ADVICE}"
    if "text_encoder_2" in folders and "text_encoder" not in folders:
        return f"has the second text encoder of SDXL alone, as its refiner does: {ADVICE}"
    if "unet" not in folders:
        return f"has no unet/, so that it is no diffusers folder of Stable Diffusion: {ADVICE}"
    missing = [file for file in _needed(files, _variant(files)) if file not in files]
    pickled = [file for file in missing if file.endswith(".safetensors") and _pickled(file) in files]
    if pickled:
        return (
            f"has {_pickled(pickled[0])} but not {pickled[0]}, and pickled weights are not loaded: convert it with "
            "`StableDiffusionPipeline.from_pretrained(MODEL).save_pretrained(FOLDER)`"
        )
    return f"is not complete: it lacks {', '.join(missing)}" if missing else None


def _needed(files: set[str], variant: str | None) -> list[str]:
    """The files that a model with these files needs, with weights of one variant."""
    needed = [*FILES, *XL_FILES] if any(file.startswith("text_encoder_2/") for file in files) else [*FILES]
    for tokenizer in sorted({file.split("/")[0] for file in needed if file.startswith("tokenizer")}):
        if f"{tokenizer}/tokenizer.json" not in files:
            needed += [f"{tokenizer}/{file}" for file in VOCABULARY]
    return needed if variant is None else [file.replace(".safetensors", f".{variant}.safetensors") for file in needed]


def _variant(files: set[str], dtype: torch.dtype | None = None) -> str | None:
    """Which weight files to load: those in half precision where the model runs in it, or has no others."""
    complete = {variant: files.issuperset(_needed(files, variant)) for variant in (None, HALF)}
    return HALF if complete[HALF] and (dtype == torch.float16 or not complete[None]) else None


def _pickled(file: str) -> str:
    return file.replace("/model.safetensors", "/pytorch_model.bin").replace(".safetensors", ".bin")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()}


def _why_unavailable(name: str, error: Exception) -> str:
    """One sentence on why the hub does not give a model, and what to do."""
    if isinstance(error, GatedRepoError):
        return (
            f"the diffusion model {name} is gated: accept its licence at https://huggingface.co/{name}, "
            "then `hf auth login`"
        )
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return (
            f"there is no diffusion model {name}: neither a local folder nor a model on the Hugging Face Hub "
            "(for a private one, `hf auth login` first)"
        )
    return (
        f"the diffusion model {name} is not, or not as a whole, on this machine, and the Hugging Face Hub cannot be "
        f"reached ({first_line(error)}): go online once, or `hf download {name} --local-dir FOLDER` elsewhere and "
        "give that folder"
    )
