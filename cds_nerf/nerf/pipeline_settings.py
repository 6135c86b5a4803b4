"""What an edit's pipeline can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.fields.growing import GrowingConfig
from cds_nerf.guidance import CDSGuidanceConfig
from cds_nerf.nerf.datamanager import CDSDataManagerConfig
from cds_nerf.nerf.region import RegionConfig

PROMPT_FLAGS = ("--pipeline.source-prompt", "--prompt")
"""What a user calls the two prompts."""


@dataclass
class CDSPipelineSettings(VanillaPipelineConfig):
    """What is edited, into what, and how."""

    datamanager: CDSDataManagerConfig = field(default_factory=CDSDataManagerConfig)
    """The cameras of the edit."""
    model: ModelConfig = field(default_factory=NerfactoModelConfig)
    """The field; the source run's settings where you give none."""
    source_prompt: str = ""
    """Describes the scene as it is, such as "a photo of a fox"."""
    target_prompt: str = ""
    """Describes the scene as it should become, such as "a photo of a wolf"; --prompt is the same."""
    diffusion: str | None = None
    """The text-to-image model; short for --pipeline.diffusion-model.model."""
    diffusion_model: DiffusionOptions = field(default_factory=DiffusionOptions)
    """The text-to-image model."""
    guidance: CDSGuidanceConfig = field(default_factory=CDSGuidanceConfig)
    """Settings of the guidance."""
    guided_through: Literal["encoder", "decoder"] = "encoder"
    """How the guidance moves a view. encoder: its gradient in latents goes back through the encoder. decoder:
    the view is drawn to the picture of its latents one step further, without the encoder's noise and in less memory;
    what is finer than the latents fades within the region."""
    latent_step: float = 0.8
    """For the decoder: how far that step goes; 1 is the difference of the noise predictions."""
    region: RegionConfig = field(default_factory=RegionConfig)
    """Where the edit may act."""
    w_keep: float = 1.0
    """Weight of what keeps a view as the source's outside the region; 0 keeps nothing, and with the region auto lets
    the edit act anywhere."""
    held_rays: int = 4096
    """For ray fields: how many rays outside the region, of views drawn before, each step keeps as the source's too; 0
    for none. What a step changes for one view it changes for others."""
    w_anchor: float = 0.03
    """For splats: weight of what keeps the source's Gaussians outside the region where they are; 0 for none."""
    growing: GrowingConfig = field(default_factory=GrowingConfig)
    """For splats: whether the edit adds Gaussians."""
    guidance_resolution: int | None = None
    """Shorter side, in pixels, of the views that the guidance sees; the diffusion model's native size if none is given.
    Less is faster, takes less memory and shows the model less."""
    guidance_device: str | None = None
    """Device of the diffusion model, such as cuda:1 or cpu, the field's if none is given; short for
    --pipeline.diffusion-model.device. With --machine.num-devices 2, cuda:2 is the first one's, and cuda:3 the
    second's."""
    guidance_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Precision of the diffusion model; short for --pipeline.diffusion-model.dtype."""
    views_per_step: int = 1
    """Views of whose losses each step takes the mean, one after the other in the memory of one, on each of
    --machine.num-devices. More make a step steadier and as many times slower."""
    draws_per_view: int = 1
    """Timesteps and noises of which each step takes the mean, for one render. More make a step steadier and slower, and
    the diffusion model takes as many times the memory."""
    rays_per_chunk: int = 4096
    """Rays rendered at a time. Less takes less memory; only the draws of the sampling jitter change with it."""
    encoder_checkpointing: bool = False
    """Save memory: encode each view a second time for the gradient, rather than keep all that the encoder computes
    while the UNet runs, which is 1.5 GiB in float16 for 512x512 pixels, and grows with their number. It takes about as
    long as one or two UNet samples. With --pipeline.diffusion-model.cpu-offload it is always so."""
    views_in_memory: int = 1024
    """Views of the source that stay in memory once they are in use; each takes four bytes a pixel."""
    steps_per_strip: int = 100
    """Steps between pictures of how far the edit has come."""
    orbit_frames: int = 60
    """Frames of the before/after video; 0 for no video."""
    live_changes: Path | None = None
    """The live_changes.json of an edit whose changes in the viewer are to be made again, at the same steps."""
    resume_from: Path | None = None
    """The folder of an edit that was interrupted; it goes on with its own settings."""
    source_checkpoint: tyro.conf.Suppress[Path | None] = None
    """The checkpoint that the edit starts from; found from --load-dir."""

    @property
    def encodes_twice(self) -> bool:
        """Whether a view is encoded once more for the gradient, as it must be where the encoder does not stay."""
        return self.guided_through == "encoder" and (self.encoder_checkpointing or self.diffusion_model.cpu_offload)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What a config.yml says; what an older version did not write has its default."""
        vars(self).update(vars(type(self)()) | state)
