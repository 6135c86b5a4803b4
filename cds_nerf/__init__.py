"""Text-guided editing of radiance fields and images with Contrastive Denoising Score."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cds_nerf.guidance import CDSGuidance, CDSGuidanceConfig, CDSOutput, LatentDiffusion, TextEmbedding
    from cds_nerf.image.edit import edit_image
    from cds_nerf.nerf.edit import edit_scene

MODULES = {"edit_image": "cds_nerf.image.edit", "edit_scene": "cds_nerf.nerf.edit"} | dict.fromkeys(
    ("CDSGuidance", "CDSGuidanceConfig", "CDSOutput", "LatentDiffusion", "TextEmbedding"), "cds_nerf.guidance"
)
"""Where the public names are defined."""

__all__ = [
    "CDSGuidance",
    "CDSGuidanceConfig",
    "CDSOutput",
    "LatentDiffusion",
    "TextEmbedding",
    "edit_image",
    "edit_scene",
]

__version__: str
"""Of the installed package."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("cds-nerf")
    # On demand: torch and diffusers take seconds to import, and `cds-nerf --help` needs neither.
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
