"""A frozen text-to-image prior behind one interface: its latents, its text embeddings, its noise predictions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cds_nerf.diffusion.latent_diffusion import LatentDiffusion, TextEmbedding

__all__ = ["LatentDiffusion", "TextEmbedding"]


def __getattr__(name: str) -> Any:
    # On demand: torch and diffusers take seconds to import, and `cds-nerf --help` needs neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("cds_nerf.diffusion.latent_diffusion"), name)


def __dir__() -> list[str]:
    return __all__
