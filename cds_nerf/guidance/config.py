"""The settings of the guidance; imports no torch, so that a command line can offer them at once."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal, get_args

import yaml

from cds_nerf.errors import UserError
from cds_nerf.guidance.registry import score_class


class PaperDefault(float):
    """A number that nobody has told: the one of the score's paper, which is another for another score.

    A command line hands on what was not typed as it is, and so it is known that it was not. In a file it is a number.
    """


yaml.add_representer(PaperDefault, lambda dumper, value: dumper.represent_float(float(value)))


OF_CONTRASTIVE_LOSS = (
    "contrastive_loss",
    "n_patches",
    "patch_sizes",
    "temperature",
    "contrastive_layers",
    "contrastive_resolutions",
    "contrastive_query",
)
"""The settings that do nothing where the contrastive loss has no weight."""
TimestepSchedule = Literal["uniform", "decreasing"]


@dataclass
class CDSGuidanceConfig:
    """Settings of the guidance; the defaults are those of the reference implementation of Contrastive Denoising Score.

    Where `score` is another, guidance scale, contrastive weight and timesteps are its own unless they are told.
    """

    score: str = "cds"
    """What says where the edit goes: cds (Contrastive Denoising Score), dds (Delta Denoising Score), sds (Score
    Distillation Sampling), pds (Posterior Distillation Sampling), ids (Identity-preserving Distillation Sampling), or
    one that an installed package registers."""
    guidance_scale: float = PaperDefault(7.5)
    """Classifier-free guidance scale of the noise predictions; by default the score's own: 7.5, and 100 for sds and
    pds."""
    w_dds: float = 1.0
    """Weight of the score (the Delta Denoising Score or another), which makes the change."""
    w_cut: float = PaperDefault(3.0)
    """Weight of the contrastive loss, which keeps the structure, beside any score; 0 is none. By default the score's
    own: 3 for cds, else 0."""
    relative_w_cut: float | None = None
    """Strength of the contrastive loss's gradient relative to the score's, on the mean over the last hundred steps or
    so, in place of w_cut: it means the same whatever the model, the size of the latents, the layers and the score."""
    contrastive_loss: Literal["patch_nce", "relations"] = "patch_nce"
    """What the contrastive loss compares. "patch_nce": each patch with all of the other picture, as in the paper.
    "relations": how alike a picture's patches are to one another; it leaves alone what is as it was, minds a new colour
    less, and wants a greater w_cut: 100 on the bundled model."""
    n_patches: int = 256
    """How many patches of each self-attention feature map are compared, at the most."""
    patch_sizes: tuple[int, ...] = (1, 2)
    """Sides of the patches, in feature positions; each adds a term to the contrastive loss."""
    temperature: float = 0.07
    """Divides the cosine similarities of the contrastive loss."""
    min_timestep: float = PaperDefault(0.05)
    """Least noise, as a fraction of the training timesteps; by default the score's own: 0.05, and 0.02 for sds and
    pds."""
    max_timestep: float = PaperDefault(0.95)
    """Most noise, as a fraction of the training timesteps; by default the score's own: 0.95, and 0.98 for sds and
    pds."""
    timestep_schedule: TimestepSchedule = "uniform"
    """How much noise a step takes. "uniform": any amount between the bounds. "decreasing": the most at first and the
    least in the end, over the edit's steps."""
    timestep_spread: float = 0.2
    """Of the decreasing schedule: the share of the range between the bounds from which each step draws; 0 leaves
    nothing to chance, 1 is uniform."""
    contrastive_layers: tuple[int, ...] = ()
    """Which self-attentions of the UNet's up blocks take part in the contrastive loss, counted from 0, the coarsest;
    all if none is given."""
    contrastive_resolutions: tuple[int, ...] = ()
    """Which take part by resolution: by how much smaller than the latents their feature maps are, such as 2 4; all if
    none is given. A Stable Diffusion 1.x model has 1, 2 and 4."""
    contrastive_query: Literal["source", "target"] = "source"
    """Whose patches are classified among the other's. "source": the target's other patches are the negatives, as in
    the reference implementation. "target": the source's are, as in the paper's equation and in CUT."""

    def __post_init__(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Give what was not told the score's own numbers, and check all; to be called after a setting was changed.

        Raises:
            UserError: if a setting cannot be used; the message says which, its value and what it must be.
        """
        # The default score's numbers stand above, so that no score has to be imported for them.
        paper = CDSGuidanceConfig if self.score == CDSGuidanceConfig.score else score_class(self.score)
        for field in fields(self):
            if isinstance(getattr(self, field.name), PaperDefault):
                setattr(self, field.name, PaperDefault(getattr(paper, field.name)))
        if self.relative_w_cut is not None and isinstance(self.w_cut, PaperDefault):
            self.w_cut = PaperDefault(0.0)
        self._check()

    def _check(self) -> None:
        relative = 0 if self.relative_w_cut is None else self.relative_w_cut
        rules = {
            "guidance_scale": (0 <= self.guidance_scale < math.inf, "at least 0"),
            "w_dds": (0 <= self.w_dds < math.inf, "at least 0"),
            "w_cut": (0 <= self.w_cut < math.inf, "at least 0"),
            "relative_w_cut": (0 <= relative < math.inf, "at least 0"),
            "contrastive_loss": (self.contrastive_loss in ("patch_nce", "relations"), "'patch_nce' or 'relations'"),
            "n_patches": (self.n_patches >= 1, "at least 1"),
            "patch_sizes": (self.patch_sizes and min(self.patch_sizes) >= 1, "one or more sizes of at least 1"),
            "temperature": (0 < self.temperature < math.inf, "greater than 0"),
            "min_timestep": (0 <= self.min_timestep <= self.max_timestep, "between 0 and max_timestep"),
            "max_timestep": (self.max_timestep <= 1, "at most 1: it is a fraction of the training timesteps"),
            "timestep_schedule": (self.timestep_schedule in get_args(TimestepSchedule), "'uniform' or 'decreasing'"),
            "timestep_spread": (0 <= self.timestep_spread <= 1, "between 0 and 1"),
            "contrastive_layers": (min(self.contrastive_layers, default=0) >= 0, "indices of at least 0"),
            "contrastive_resolutions": (min(self.contrastive_resolutions, default=1) >= 1, "at least 1 each"),
            "contrastive_query": (self.contrastive_query in ("source", "target"), "'source' or 'target'"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {rule}")
        if relative and self.w_cut:
            raise UserError(f"w_cut is {self.w_cut} and relative_w_cut is {relative}: they weigh the same, give one")
        if self.contrastive_loss == "relations":
            self._check_relations(relative)
        if relative and not self.w_dds:
            raise UserError(f"relative_w_cut is {relative}, relative to a score whose weight w_dds is 0: give w_cut")

    def _check_relations(self, relative: float) -> None:
        if self.contrastive_query == "target":
            raise UserError("contrastive_query is 'target', but relations have no query: leave it out")
        if relative:
            raise UserError(
                f"relative_w_cut is {relative}, relative to a gradient that is 0 before the edit, as that of "
                "contrastive_loss relations is: give w_cut"
            )

    @staticmethod
    def settled(told: Collection[str]) -> frozenset[str]:
        """The fields that are settled where these are told: a weight of the contrastive loss rules the other out."""
        weights = {"w_cut", "relative_w_cut"}
        return frozenset(told) | (weights if weights & set(told) else frozenset())

    def check_told(self, told: Collection[str]) -> None:
        """Refuse what would do nothing.

        Args:
            told: the fields that a user has given.

        Raises:
            UserError: if one of them has another value than its default, which acts only with another setting; the
                message says which.
        """
        told = {name for name in told if getattr(self, name) != getattr(CDSGuidanceConfig, name)}
        idle = [name for name in OF_CONTRASTIVE_LOSS if name in told]
        if idle and not self.has_contrastive_term:
            raise UserError(
                f"{idle[0]} is {getattr(self, idle[0])!r}, but the contrastive loss has no weight: give w_cut, or "
                "leave it out"
            )
        if "timestep_spread" in told and self.timestep_schedule == "uniform":
            raise UserError(
                f"timestep_spread is {self.timestep_spread}, which is for timestep_schedule 'decreasing', and that is "
                "'uniform'"
            )

    @property
    def has_contrastive_term(self) -> bool:
        """Whether the contrastive loss has a weight, of whichever kind."""
        return bool(self.w_cut or self.relative_w_cut)
