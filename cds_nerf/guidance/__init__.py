"""Contrastive Denoising Score guidance on a latent diffusion model; needs no nerfstudio."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cds_nerf.guidance.cds import CDSGuidance, CDSOutput
    from cds_nerf.guidance.config import CDSGuidanceConfig
    from cds_nerf.guidance.latent_diffusion import LatentDiffusion, TextEmbedding

__all__ = ["CDSGuidance", "CDSGuidanceConfig", "CDSOutput", "LatentDiffusion", "TextEmbedding"]

_MODULES = {
    "CDSGuidance": "cds",
    "CDSGuidanceConfig": "config",
    "CDSOutput": "cds",
    "LatentDiffusion": "latent_diffusion",
    "TextEmbedding": "latent_diffusion",
}


def __getattr__(name: str) -> Any:
    # On demand: torch and diffusers take seconds to import, and `cds-nerf --help` needs neither.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
