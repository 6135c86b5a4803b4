"""Which models can be used: of the others, a sentence's end that says by name what they are and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ADVICE = "use Stable Diffusion 1.x, 2.x or XL base, or a model fine-tuned from them"
"""What to do about a model that cannot be used."""
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
"""The class of each part."""


def why_other_class(part: str, name: str) -> str | None:
    """What is wrong with a part of a class of this name; None if nothing."""
    if name == CLASSES[part] or (part.startswith("text_encoder") and name.startswith("CLIP")):
        return None
    way_out = "put the one in its place that the model was trained with" if part == "vae" else ADVICE
    return f"has the {part} {name}, where it must be {CLASSES[part]}: {way_out}"


def why_other_classes(folder: Path) -> str | None:
    """What is wrong with the classes that the parts of a diffusers folder say they have; None if nothing."""
    for part in CLASSES:
        config = read_config(folder / part / "config.json")
        architectures = config.get("architectures") or [CLASSES[part]]
        if problem := why_other_class(part, config.get("_class_name", architectures[0])):
            return problem
    unet, vae = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
    if "in_channels" in unet and "latent_channels" in vae:
        return why_other_channels(unet["in_channels"], vae["latent_channels"])
    return None


def why_other_channels(unet: int, vae: int) -> str | None:
    """What is wrong with a UNet that takes other channels than the VAE's latents have; None if they are the same."""
    if unet == vae:
        return None
    kinds = {
        2 * vae + 1: "an inpainting model",
        2 * vae: "an instruction model (InstructPix2Pix)",
        vae + 1: "a depth model",
        vae + 3: "an upscaler",
    }
    kind = kinds.get(unet, "no text-to-image model")
    return f"is {kind}, whose UNet takes {unet} channels where the VAE makes {vae}: use the model that it was made from"


def read_config(file: Path) -> dict[str, Any]:
    """A configuration; nothing where there is none, or none that can be read, which shows when the part is loaded."""
    try:
        config = json.loads(file.read_text("utf8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
