"""The bundled default: a small world of shapes on floors, and a latent diffusion model that knows it."""

from pathlib import Path

from cds_nerf.diffusion.model_name import BUNDLED_FOLDER


def prior_path() -> Path:
    """The folder of the bundled latent diffusion model, for any `from_pretrained`; its README.md is the model card."""
    return BUNDLED_FOLDER
