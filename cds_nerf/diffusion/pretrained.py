"""The parts of a pretrained Stable Diffusion model, and one clear sentence where they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cds_nerf.diffusion.model_name import model_location
from cds_nerf.diffusion.model_settings import SETTINGS_FILE, ModelSettings
from cds_nerf.diffusion.single_file import check_single_file, load_single_file
from cds_nerf.diffusion.supported import ADVICE, read_config, why_other_classes
from cds_nerf.errors import UserError, first_line
from cds_nerf.hub import ask_hub

WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}
"""How the weight files of each part are called, apart from variants, shards and endings."""
VOCABULARY = ("vocab.json", "merges.txt")
"""A tokenizer's vocabulary, which `tokenizer.json` may hold instead."""
VARIANTS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""The variant of weight files in each precision, which a part may have besides the others or instead."""
SMALL_FILES = ("*/*.json", "tokenizer*/*", "model_index.json", SETTINGS_FILE)
"""What is downloaded beside the weights."""


def load_parts(
    model: str | Path, dtype: torch.dtype, config: str | Path | None = None
) -> tuple[dict[str, Any], ModelSettings]:
    """The UNet, scheduler, VAE, text encoders and tokenizers of a folder, a file or a hub id, on the CPU.

    They are arguments of `LatentDiffusion`, as are the settings that suit the model. A VAE of SDXL that overflows in
    float16 is loaded in float32.

    Args:
        model: a diffusers folder, a .safetensors file in Stable Diffusion's own layout, or a hub id.
        dtype: of all weights but those.
        config: for a file, see `load_single_file`.

    Raises:
        UserError: if the model cannot be had; the message says why and what to do.
    """
    if (file := _single_file(model, config)) is not None:
        return load_single_file(file, dtype, config), ModelSettings()
    folder = _supported_folder(model, dtype)
    settings = ModelSettings.read(folder)
    is_xl = (folder / "text_encoder_2").is_dir()
    files = _files(folder)
    parts: dict[str, Any] = {}
    try:
        parts["scheduler"] = _load_scheduler(folder)
        vae_config = AutoencoderKL.load_config(folder, subfolder="vae")
        overflows = is_xl and dtype == torch.float16 and vae_config.get("force_upcast", True)
        models = [
            ("text_encoder", CLIPTextModel, dtype),
            ("vae", AutoencoderKL, torch.float32 if overflows else dtype),
            ("unet", UNet2DConditionModel, dtype),
        ]
        if is_xl:
            models.append(("text_encoder_2", CLIPTextModelWithProjection, dtype))
            parts["force_zeros_for_empty_prompt"] = read_config(folder / "model_index.json").get(
                "force_zeros_for_empty_prompt", True
            )
        parts |= load_tokenizers(folder)
        for name, kind, precision in models:
            variant = _weights(files, name, dtype).variant
            # transformers 4 and 5 call the argument by different names; a text encoder is small enough to convert.
            is_text_encoder = name.startswith("text_encoder")
            wanted = {} if is_text_encoder else {"torch_dtype": precision}
            part, loading = kind.from_pretrained(
                folder, subfolder=name, variant=variant, use_safetensors=True, output_loading_info=True, **wanted
            )
            parts[name] = part.to(precision) if is_text_encoder else part
            if loading["missing_keys"]:  # both libraries only log this, and leave random weights
                raise ValueError(f"the weights of {name} lack {sorted(loading['missing_keys'])[0]}")
    except UserError:
        raise
    except Exception as error:  # a broken file shows in the exceptions of four libraries
        raise UserError(
            f"the diffusion model in {folder} does not load: {first_line(error)}; "
            "if its files are damaged or do not belong together, get them anew"
        ) from error
    return parts, settings


def _load_scheduler(folder: Path) -> DDIMScheduler:
    """The noise schedule, whichever sampler the model comes with."""
    sampler = DDIMScheduler.load_config(folder, subfolder="scheduler").get("_class_name", "")
    if sampler.startswith(("EDM", "FlowMatch")):  # their configurations hold no betas
        raise UserError(f"the diffusion model in {folder} has the noise schedule {sampler}: {ADVICE}")
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def model_settings(model: str | Path, dtype: torch.dtype) -> ModelSettings:
    """The settings that a model carries; none for a checkpoint in a single file.

    Raises:
        UserError: if the model cannot be had, or its settings cannot be read.
    """
    location = model_location(model)
    return ModelSettings() if Path(location).expanduser().is_file() else ModelSettings.read(model_folder(model, dtype))


def check_before_loading(
    model: str | Path, dtype: torch.dtype, config: str | Path | None
) -> list[tuple[CLIPTokenizer, int]]:
    """Get a model onto this machine, and check it as far as that goes without loading its weights.

    The arguments are those of `load_parts`.

    Returns:
        The tokenizers, each with the number of tokens that its text encoder takes; none for a single file.

    Raises:
        UserError: if the model cannot be had; the message says why and what to do.
    """
    if (file := _single_file(model, config)) is not None:
        check_single_file(file, config)
        return []
    folder = _supported_folder(model, dtype)
    tokenizers = []
    for name, tokenizer in load_tokenizers(folder).items():
        text_encoder = read_config(folder / name.replace("tokenizer", "text_encoder") / "config.json")
        limit = text_encoder.get("max_position_embeddings", tokenizer.model_max_length)
        tokenizers.append((tokenizer, min(limit, tokenizer.model_max_length)))
    return tokenizers


def _single_file(model: str | Path, config: str | Path | None) -> Path | None:
    """The file of a checkpoint; None for any other model."""
    if (file := Path(model_location(model)).expanduser()).is_file():
        return file
    if config is not None:
        raise UserError(f"model_config is {config}, but {model} is no single file: a folder has its own configuration")
    return None


def _supported_folder(model: str | Path, dtype: torch.dtype) -> Path:
    """The folder of a model, whose parts say that they are of the right classes."""
    folder = model_folder(model, dtype)
    if problem := why_other_classes(folder):
        raise UserError(f"the diffusion model in {folder} {problem}")
    return folder


def load_tokenizers(folder: Path) -> dict[str, CLIPTokenizer]:
    """The tokenizers of a diffusers folder, by the names of its parts."""
    names = [name for name in ("tokenizer", "tokenizer_2") if (folder / name).is_dir()]
    return {name: CLIPTokenizer.from_pretrained(folder, subfolder=name) for name in names}


def model_folder(model: str | Path, dtype: torch.dtype) -> Path:
    """The local folder of a model: itself, in the Hugging Face Hub's cache, or downloaded into that cache.

    What is cached as a whole is used without asking the hub. Of each part, the weight files in the wanted precision
    are downloaded where there are any, else those without a variant, else whichever there are.

    Raises:
        UserError: if the model cannot be had or is of another kind; the message says why and what to do.
    """
    name = model_location(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = _snapshot(folder)
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
        on_hub = {file.rfilename for file in ask_hub(name).siblings or ()}
        if problem := why_unusable(on_hub):
            raise UserError(f"the diffusion model {name} on the Hugging Face Hub {problem}")
        weights = [file for part in _parts(on_hub) for file in _weights(on_hub, part, dtype).files]
        return Path(snapshot_download(name, allow_patterns=[*weights, *SMALL_FILES]))
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
    parts = _parts(files)
    missing = [file for file in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts))]
    for tokenizer in (part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")):
        if f"{tokenizer}/tokenizer.json" not in files:
            missing += [f"{tokenizer}/{file}" for file in VOCABULARY]
    missing = [file for file in missing if file not in files]
    for part in parts:
        lacking = _weights(files, part).missing
        pickled = next((file for file in sorted(files) if file.startswith(f"{part}/") and file.endswith(".bin")), None)
        if lacking and pickled:
            return (
                f"has {pickled} but not {lacking[0]}, and pickled weights are not loaded: convert it with "
                "`StableDiffusionPipeline.from_pretrained(MODEL).save_pretrained(FOLDER)`"
            )
        missing += lacking
    return f"is not complete: it lacks {', '.join(missing)}" if missing else None


def _parts(files: Iterable[str]) -> list[str]:
    """The parts with weights that a model with these files has, or must have."""
    is_xl = any(file.startswith("text_encoder_2/") for file in files)
    return [part for part in WEIGHTS if is_xl or part != "text_encoder_2"]


@dataclass(frozen=True)
class _Weights:
    """The weight files of one part in one variant."""

    variant: str | None
    files: list[str]
    missing: list[str]


def _weights(files: Iterable[str], part: str, dtype: torch.dtype | None = None) -> _Weights:
    """The weights of a part to load: complete ones before others, then in the wanted precision, then in no variant.

    They are one file, or shards with an index of them.
    """
    stem = f"{part}/{WEIGHTS[part]}"
    name = re.compile(rf"{stem}(?:\.(\w+))?(?:-(\d+)-of-(\d+))?(?:\.(\w+))?\.safetensors")
    found: dict[str | None, dict[str, re.Match[str]]] = {}
    files = set(files)
    for file in sorted(files):
        if match := name.fullmatch(file):
            found.setdefault(match[1] or match[4], {})[file] = match
    choices = []
    for variant, matches in found.items():
        whole = [file for file, match in matches.items() if match[3] is None]
        if whole:
            choices.append(_Weights(variant, whole, []))
            continue
        infix = "" if variant is None else f".{variant}"
        index = f"{stem}.safetensors.index{infix}.json"
        numbers = {int(match[2]) for match in matches.values()}
        total = max(int(match[3]) for match in matches.values())
        missing = [] if index in files else [index]
        for number in sorted({*range(1, total + 1)} - numbers):
            missing.append(f"{stem}{infix}-{number:05}-of-{total:05}.safetensors")
        choices.append(_Weights(variant, [*matches, index], missing))
    wanted = [VARIANTS.get(dtype) if dtype else None, None, *VARIANTS.values()]

    def rank(weights: _Weights) -> tuple[bool, int, str]:
        known = wanted.index(weights.variant) if weights.variant in wanted else len(wanted)
        return bool(weights.missing), known, weights.variant or ""

    return min(choices, key=rank, default=_Weights(None, [], [f"{stem}.safetensors"]))


def _snapshot(folder: Path) -> Path:
    """The folder of the model itself, where that of a model in the hub's cache is given.

    Raises:
        UserError: if the cache as a whole is given.
    """
    if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
        folder = folder.parent
    if models := sorted(model.name for model in folder.glob("models--*--*")):
        example = "/".join(models[0].split("--")[1:])
        raise UserError(f"{folder} is the Hugging Face Hub's cache of several models: name one of them, as {example}")
    snapshots = sorted(
        (path for path in folder.glob("snapshots/*") if path.is_dir()), key=lambda path: path.stat().st_mtime
    )
    if not snapshots:
        return folder
    main = folder / "refs" / "main"
    current = folder / "snapshots" / main.read_text("utf8").strip() if main.is_file() else snapshots[-1]
    return current if current.is_dir() else snapshots[-1]


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
