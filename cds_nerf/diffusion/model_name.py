"""What names a diffusion model, beside paths and hub ids; imports no torch, so that command lines can offer it."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""The model where the user names none."""
BUNDLED_MODEL = "shapes"
"""The name of the model that comes with this package; `./shapes` is a folder of that name."""
BUNDLED_FOLDER = Path(__file__).parents[1] / "shapes" / "prior"
"""Where the bundled model is."""


def model_location(model: str | Path) -> str:
    """Where a model is: the folder of the bundled one for its name, and what was given for any other."""
    return str(BUNDLED_FOLDER) if str(model) == BUNDLED_MODEL else str(model)
