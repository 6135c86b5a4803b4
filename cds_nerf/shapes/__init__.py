"""The bundled default: a small world of shapes on floors, and a latent diffusion model that knows it."""

from pathlib import Path


def prior_path() -> Path:
    """The folder of the bundled latent diffusion model, for any `from_pretrained`; its README.md is the model card."""
    return Path(__file__).parent / "prior"
