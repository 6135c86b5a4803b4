"""Scores that say where latents should go, on a frozen prior: Contrastive Denoising Score; needs no nerfstudio."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cds_nerf.diffusion import LatentDiffusion, TextEmbedding
    from cds_nerf.guidance.config import CDSGuidanceConfig
    from cds_nerf.guidance.loss import CDSGuidance, CDSOutput
    from cds_nerf.guidance.noisy_pair import NoisyPair
    from cds_nerf.guidance.score import Score

__all__ = ["CDSGuidance", "CDSGuidanceConfig", "CDSOutput", "LatentDiffusion", "NoisyPair", "Score", "TextEmbedding"]

_MODULES = {
    "CDSGuidance": "cds_nerf.guidance.loss",
    "CDSGuidanceConfig": "cds_nerf.guidance.config",
    "CDSOutput": "cds_nerf.guidance.loss",
    "LatentDiffusion": "cds_nerf.diffusion",
    "NoisyPair": "cds_nerf.guidance.noisy_pair",
    "Score": "cds_nerf.guidance.score",
    "TextEmbedding": "cds_nerf.diffusion",
}


def __getattr__(name: str) -> Any:
    # On demand: torch and diffusers take seconds to import, and `cds-nerf --help` needs neither.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
