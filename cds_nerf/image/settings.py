"""What image edits are made with, as the command line offers it and each edit's file records it; imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.guidance import CDSGuidanceConfig
from cds_nerf.image.settings_check import check_descent, check_seed


@dataclass
class ImageEditSettings:
    """What an edit looks like, besides the image and the prompts."""

    seed: int = 0
    """Seed of the noise; the same gives the same result on the same device."""
    steps: int = 200
    """How many times the latents are moved."""
    learning_rate: float = 0.1
    """Of the gradient descent on the latents."""
    resolution: int | None = None
    """Shorter side of the edit in pixels; by default the size that the model was trained on."""
    square: bool = False
    """Squash the image to a square for the edit, as the reference implementation does."""
    keep_size: bool = False
    """Bring the result back to the image's own size; otherwise it has the edit's."""
    mask: Path | None = None
    """Picture of the image's size, white where the edit may act; elsewhere the result's pixels are the image's. Any
    mode and depth: values of 0 and 1 are black and white, and in a picture that is transparent in places what is opaque
    may change, unless it is drawn in black and white."""
    guidance: Annotated[CDSGuidanceConfig, tyro.conf.arg(name="")] = field(default_factory=CDSGuidanceConfig)
    """Settings of the guidance."""
    diffusion: Annotated[DiffusionOptions, tyro.conf.arg(name="")] = field(default_factory=DiffusionOptions)
    """The diffusion model."""

    def check(self) -> None:
        """Check what can be checked without an image and a model.

        Raises:
            UserError: if a setting cannot be used.
        """
        check_descent(self.steps, self.learning_rate)
        check_seed(self.seed)

    def record(self, image: Path, source_prompt: str, target_prompt: str) -> dict[str, Any]:
        """What it takes to repeat an edit: the command's options by their names, and the program's version.

        Args:
            image: the edited image's file.
            source_prompt: what it shows.
            target_prompt: what it is to show.
        """
        settings = asdict(self)
        settings |= settings.pop("guidance") | settings.pop("diffusion")
        settings |= {"image": image, "source_prompt": source_prompt, "target_prompt": target_prompt}
        settings["version"] = version("cds-nerf")
        return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
