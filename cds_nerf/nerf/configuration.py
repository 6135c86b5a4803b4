"""What an edit can be told, and what it does where it is told nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig

from cds_nerf.nerf.device import default_device
from cds_nerf.nerf.pipeline import CDSPipelineConfig

DEFAULT_ITERATIONS = 1000
"""Edit steps where the user asks for no number."""


EDIT_RATES = {
    "proposal_networks": 1e-3,
    "fields": 1e-3,
    "means": 4e-4,
    "scales": 1e-3,
    "quats": 2e-4,
    "features_dc": 2e-2,
    "features_rest": 2e-4,
    "opacities": 1e-2,
}
"""What each parameter group moves at first. Those of ray fields were chosen by `benchmarks/learning_rate.py`. Those of
splats go as far in 1000 steps as the rates of the splats' demo in 160, which were tried on the bundled world: see
docs/measured.md."""


def edit_optimizers() -> dict[str, Any]:
    """Adam at rates that decay exponentially to a tenth over the edit."""
    return {
        group: {
            "optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15),
            "scheduler": ExponentialDecaySchedulerConfig(lr_final=rate / 10, max_steps=DEFAULT_ITERATIONS),
        }
        for group, rate in EDIT_RATES.items()
    }


@dataclass
class EditConfig(TrainerConfig):
    """The settings of an edit; the defaults are the method's."""

    method_name: str | None = "cds"
    pipeline: CDSPipelineConfig = field(default_factory=CDSPipelineConfig)
    """Prompts, diffusion model, guidance, data and model of the edit."""
    optimizers: dict[str, Any] = field(default_factory=edit_optimizers)
    """Optimizers of the source's parameter groups; a group that is not named here gets the fields' optimizer."""
    max_num_iterations: int | None = None  # type: ignore[assignment]
    """Edit steps; 1000, or as many as the run had that is resumed."""
    load_dir: Path | None = None
    """The run to edit: its folder, the nerfstudio_models in it or a checkpoint file. Its config.yml gives the model's
    settings."""
    load_step: int | None = None
    """The step of the checkpoint to edit; the newest if none is given."""
    prompt: str | None = None
    """The target prompt: describes the scene as it should become."""
    steps_per_save: int = 100
    """Steps between checkpoints."""
    steps_per_eval_batch: int = 0
    """Steps between losses on evaluation photographs, which know nothing of an edit; 0 for never."""
    steps_per_eval_image: int = 0
    """Steps between metrics on an evaluation photograph, which knows nothing of an edit; 0 for never."""
    steps_per_eval_all_images: int = 0
    """Steps between metrics on all evaluation photographs, which know nothing of an edit; 0 for never."""
    machine: MachineConfig = field(default_factory=lambda: MachineConfig(device_type=default_device()))
    """Machine configuration"""
    logging: LoggingConfig = field(
        default_factory=lambda: LoggingConfig(steps_per_log=1, local_writer=LocalWriterConfig(enable=False))
    )
    """Logging configuration; the console shows a progress bar in place of nerfstudio's table."""
    vis: Literal[
        "viewer", "wandb", "tensorboard", "comet", "viewer+wandb", "viewer+tensorboard", "viewer+comet", "viewer_legacy"
    ] = "viewer+tensorboard"
    """Which visualizer to use."""
    typed: tyro.conf.Suppress[list[str] | None] = None
    """Which settings the user gave, by their dotted paths; where None, those that differ from the defaults."""
