"""What people add to a diffusion model: LoRAs and textual inversions, by diffusers' own loaders."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts
from diffusers.utils import is_peft_available
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from cds_nerf.errors import UserError, first_line

XL_EMBEDDINGS = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": ("tokenizer_2", "text_encoder_2")}
"""The tensors of a textual inversion for SDXL, and the tokenizer and text encoder of each."""


OTHER_ADAPTERS = {
    ".hada_": "a LoHa",
    ".lokr_": "a LoKr",
    ".oft_": "an OFT",
    ".lora_mid": "a LoCon with a Tucker decomposition",
    "dora_scale": "a DoRA",
    ".on_input": "an IA3",
    ".diff": "made of whole weights",
    ".w_norm": "made of norms",
    ".a1.": "a GLoRA",
}
"""What people share beside plain LoRAs, mostly made with LyCORIS, by what is in the names of its tensors."""


def check_additions(loras: Sequence[str], inversions: Sequence[str]) -> None:
    """Check what can be checked before the model is loaded.

    Raises:
        UserError: if an addition is not there, pickled or of another kind, or peft is needed and not installed.
    """
    if loras and not is_peft_available():
        raise UserError("LoRAs need the package peft: `pip install 'cds-nerf[lora]'`")
    for lora in loras:
        source = _find("LoRA", _split_scale(lora)[0])
        if problem := _why_no_lora(source):
            raise UserError(f"the LoRA {source} {problem}")
    for inversion in inversions:
        _find("textual inversion", inversion.partition("=")[0])


def add_loras(parts: dict[str, Any], loras: Sequence[str]) -> None:
    """Add LoRAs into the weights of the UNet and the text encoders, in place.

    Args:
        parts: the arguments of `LatentDiffusion`.
        loras: each a .safetensors file, a folder or a hub id; `:scale` behind it multiplies it.

    Raises:
        UserError: if a LoRA cannot be had or does not fit the model.
    """
    if not loras:
        return
    pipeline = _as_pipeline(parts)
    scales: dict[str, float] = {}
    for index, lora in enumerate(loras):
        name, scale = _split_scale(lora)
        source = _find("LoRA", name)
        try:
            pipeline.load_lora_weights(source, adapter_name=f"lora{index}", use_safetensors=True)
        except Exception as error:  # from peft, diffusers, safetensors or the hub's client, each its own
            reason = _why_no_lora(source) or f"does not load: {first_line(error)}"
            raise UserError(f"the LoRA {source} {reason}") from error
        if problem := _why_no_lora(source):  # one of the hub, whose tensors diffusers has left out
            raise UserError(f"the LoRA {source} {problem}")
        if not any(f"lora{index}" in names for names in pipeline.get_list_adapters().values()):
            raise UserError(f"the LoRA {source} has no weights for this model: it was made for another")
        scales[f"lora{index}"] = scale
    pipeline.set_adapters(list(scales), list(scales.values()))
    pipeline.fuse_lora(components=list(pipeline.get_list_adapters()), adapter_names=list(scales))
    pipeline.unload_lora_weights()


def add_textual_inversions(parts: dict[str, Any], inversions: Sequence[str]) -> None:
    """Add learned words to the tokenizers and text encoders, in place.

    Args:
        parts: the arguments of `LatentDiffusion`.
        inversions: each a .safetensors file, a folder or a hub id; the word for prompts is the file's own, or its name
            where it has none, or what stands behind a `=`.

    Raises:
        UserError: if a textual inversion cannot be had or does not fit the model.
    """
    pipeline: Any = _as_pipeline(parts) if inversions else None
    for inversion in inversions:
        name, _, word = inversion.partition("=")
        source = _find("textual inversion", name)
        try:
            (embeddings,) = load_textual_inversion_state_dicts([source], use_safetensors=True)
            if set(embeddings) == set(XL_EMBEDDINGS):
                for key, (tokenizer, text_encoder) in XL_EMBEDDINGS.items():
                    pipeline.load_textual_inversion(
                        embeddings[key],
                        token=word or Path(source).stem,
                        tokenizer=parts[tokenizer],
                        text_encoder=parts[text_encoder],
                    )
            else:
                nameless = set(embeddings) == {"emb_params"}
                token = word or (Path(source).stem if nameless else None)
                pipeline.load_textual_inversion(embeddings, token=token)
        except Exception as error:  # as above
            raise UserError(f"the textual inversion {source} does not load: {first_line(error)}") from error


def _as_pipeline(parts: dict[str, Any]) -> Any:
    """The diffusers pipeline of the parts, which has the loaders."""
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _split_scale(lora: str) -> tuple[str, float]:
    source, colon, scale = lora.rpartition(":")
    try:
        return (source, float(scale)) if colon else (lora, 1.0)
    except ValueError:  # the colon belongs to the name, as that of a Windows drive
        return lora, 1.0


def _find(kind: str, source: str) -> str:
    """The path of a local file or folder, or else the hub id that the source then is."""
    path = Path(source).expanduser()
    if path.suffix in (".pt", ".bin", ".ckpt"):
        raise UserError(f"the {kind} {source} is pickled, and pickled weights are not loaded: get it as .safetensors")
    if path.exists():
        return str(path)
    if source.startswith(("/", ".", "~")) or path.suffix == ".safetensors":
        raise UserError(f"there is no {kind} {source}")
    return source


def _why_no_lora(source: str) -> str | None:
    """What is wrong with the tensors of a LoRA that is on this machine; None if nothing, or if it is not."""
    names = _tensor_names(source)
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "is a whole checkpoint: give it as the model"
    if names and names <= {"emb_params", *XL_EMBEDDINGS}:
        return "is a textual inversion: give it as textual_inversion"
    for mark, kind in OTHER_ADAPTERS.items():
        if any(mark in name for name in names):
            return (
                f"is {kind}, and plain LoRAs alone are loaded: merge it into its model with LyCORIS or what made it, "
                "and give the merged checkpoint as the model"
            )
    return None


def _tensor_names(source: str) -> set[str]:
    path = Path(source)
    if not path.exists():
        try:
            path = Path(snapshot_download(source, local_files_only=True))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            return set()
    names: set[str] = set()
    for file in [path] if path.is_file() else path.glob("*.safetensors"):
        with suppress(SafetensorError), safe_open(file, "pt") as weights:  # damaged ones show when they are loaded
            names.update(weights.keys())
    return names
