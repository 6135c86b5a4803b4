"""The settings of the guidance; imports no torch, so that a command line can offer them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cds_nerf.errors import UserError


@dataclass
class CDSGuidanceConfig:
    """Settings of the Contrastive Denoising Score; the defaults are the reference implementation's."""

    guidance_scale: float = 7.5
    """Classifier-free guidance scale of the noise predictions."""
    w_dds: float = 1.0
    """Weight of the Delta Denoising Score, which makes the change."""
    w_cut: float = 3.0
    """Weight of the contrastive loss, which keeps the structure; 0 is plain Delta Denoising Score."""
    n_patches: int = 256
    """How many patches of each self-attention feature map are compared, at the most."""
    patch_sizes: tuple[int, ...] = (1, 2)
    """Sides of the patches, in feature positions; each adds a term to the contrastive loss."""
    temperature: float = 0.07
    """Divides the cosine similarities of the contrastive loss."""
    min_timestep: float = 0.05
    """Least noise, as a fraction of the training timesteps."""
    max_timestep: float = 0.95
    """Most noise, as a fraction of the training timesteps."""
    contrastive_query: Literal["source", "target"] = "source"
    """Whose patches are classified among the other's. "source": the target's other patches are the negatives, as in
    the reference implementation. "target": the source's are, as in the paper's equation and in CUT."""

    def __post_init__(self) -> None:
        rules = {
            "guidance_scale": (self.guidance_scale >= 0, "at least 0"),
            "w_dds": (self.w_dds >= 0, "at least 0"),
            "w_cut": (self.w_cut >= 0, "at least 0"),
            "n_patches": (self.n_patches >= 1, "at least 1"),
            "patch_sizes": (self.patch_sizes and min(self.patch_sizes) >= 1, "one or more sizes of at least 1"),
            "temperature": (self.temperature > 0, "greater than 0"),
            "min_timestep": (0 <= self.min_timestep <= self.max_timestep, "between 0 and max_timestep"),
            "max_timestep": (self.max_timestep <= 1, "at most 1: it is a fraction of the training timesteps"),
            "contrastive_query": (self.contrastive_query in ("source", "target"), "'source' or 'target'"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {rule}")
