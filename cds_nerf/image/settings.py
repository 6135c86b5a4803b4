"""What image edits are made with, as the command line offers it and each edit's file records it; imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from cds_nerf.diffusion.model_settings import ModelSettings
from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import UserError
from cds_nerf.guidance import CDSGuidanceConfig
from cds_nerf.image.settings_check import check_descent, check_seed

MODEL_FIELDS = ("steps", "learning_rate")
"""What a model may say of image edits, besides the guidance."""


@dataclass
class ImageEditSettings:
    """What an edit looks like, besides the image and the prompts."""

    seed: int = 0
    """Seed of the noise; the same gives the same result on the same device."""
    steps: int = 200
    """How many times the latents are moved. A model may carry another default, as for the next one and the guidance."""
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

    def suited_to(self, model: ModelSettings, typed: Collection[str] = ()) -> tuple[ImageEditSettings, dict[str, Any]]:
        """These settings, but those of the model for what was not typed.

        Args:
            model: the settings that the model carries.
            typed: the paths of the fields that were typed, such as steps and guidance.w_cut.

        Returns:
            The settings, and those of them by name that are the model's.

        Raises:
            UserError: if the model's settings cannot be used.
        """
        told = self.guidance.settled({path.removeprefix("guidance.") for path in typed})
        guidance = model.untyped(f"guidance.{self.guidance.score}", self.guidance, told)
        image = model.untyped("image", self, typed, MODEL_FIELDS)
        suited = replace(self, guidance=replace(self.guidance, **guidance), **image)
        try:
            suited.check()
        except UserError as error:
            raise UserError(f"the model's settings {model.file}: {error}") from error
        return suited, guidance | image

    def options(self) -> dict[str, Any]:
        """The settings by the names that they have on the command line."""
        options = asdict(self)
        options |= options.pop("guidance") | options.pop("diffusion")
        return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
