"""The run whose field is edited: its settings and its checkpoint."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.engine.trainer import TrainerConfig

from cds_nerf.errors import UserError, first_line

TRANSFORMS_FILE = "dataparser_transforms.json"
"""Where nerfstudio writes down how it normalised the poses of a run."""


@dataclass(frozen=True)
class SourceRun:
    """A finished (or interrupted) nerfstudio run."""

    directory: Path
    """The run folder, which holds `config.yml`."""
    config: TrainerConfig
    """What `config.yml` says."""
    checkpoint: Path
    """The `.ckpt` file whose weights are taken."""

    @classmethod
    def find(cls, location: Path, step: int | None = None) -> SourceRun:
        """Find a run and its checkpoint.

        Args:
            location: a run folder, the checkpoint folder in it, or one checkpoint file.
            step: the checkpoint's step; the newest without it.

        Raises:
            UserError: if there is no such run, no checkpoint in it, or its `config.yml` cannot be read; or a step is
                given with a file.
        """
        if not location.exists():
            raise UserError(f"--load-dir {location} does not exist: give the folder of a finished run")
        if location.is_file():
            if step is not None:
                raise UserError(
                    f"--load-step is {step}, but {location} is one checkpoint: give its run's folder, or no step"
                )
            directory = location.parent.parent
            return cls(directory, read_run_config(directory), location)
        if (location / "config.yml").is_file():
            config = read_run_config(location)
            return cls(location, config, _choose_checkpoint(location / config.relative_model_dir, step))
        checkpoint = _choose_checkpoint(location, step)
        return cls(location.parent, read_run_config(location.parent), checkpoint)


def read_run_config(directory: Path) -> TrainerConfig:
    """The `config.yml` of a run folder, by the loader that every ns- command uses.

    Raises:
        UserError: if it is missing or cannot be read.
    """
    path = directory / "config.yml"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: it says how the run's model is built; give the run folder, or its nerfstudio_models"
        )
    try:
        config = yaml.load(path.read_text("utf8"), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}): "
            "was the run made by a plugin that is not installed here, or by another nerfstudio?"
        ) from error
    if not isinstance(config, TrainerConfig):
        raise UserError(f"{path} is not the configuration of a nerfstudio run")
    return config


def _choose_checkpoint(directory: Path, step: int | None) -> Path:
    checkpoints = sorted(directory.glob("step-*.ckpt")) if directory.is_dir() else []
    if not checkpoints:
        raise UserError(
            f"there is no checkpoint (step-*.ckpt) in {directory}: give --load-dir a run that has saved one"
        )
    if step is None:
        return checkpoints[-1]
    chosen = directory / f"step-{step:09d}.ckpt"
    if chosen not in checkpoints:
        steps = ", ".join(str(int(path.stem.removeprefix("step-"))) for path in checkpoints)
        raise UserError(f"there is no checkpoint of step {step} in {directory}: it has {steps}")
    return chosen


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A nerfstudio checkpoint, memory-mapped: what is not looked at is not read.

    Raises:
        UserError: if the file is no checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(
            f"the checkpoint {path} is not there, from which an edit starts until it has saved one of its own: "
            "put it back, or start a new edit with --load-dir"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({first_line(error)}): is it whole, and one of nerfstudio's?"
        ) from error
    if not isinstance(checkpoint, dict) or not {"pipeline", "step"} <= checkpoint.keys():
        raise UserError(f"{path} is no checkpoint of a nerfstudio run: give the nerfstudio_models folder of one")
    return checkpoint


def check_pose_normalisation(directory: Path, outputs: DataparserOutputs) -> bool:
    """Whether a run has written down how it normalised its poses; if so, these must be normalised alike.

    Args:
        directory: the run folder.
        outputs: the training split of the data at hand.

    Raises:
        UserError: if they are not.
    """
    path = directory / TRANSFORMS_FILE
    if not path.is_file():
        return False
    try:
        written = json.loads(path.read_text())
    except json.JSONDecodeError:  # nerfstudio was killed while it wrote the file
        return False
    same_transform = torch.allclose(torch.tensor(written["transform"]), outputs.dataparser_transform.cpu(), atol=1e-4)
    if same_transform and abs(written["scale"] / outputs.dataparser_scale - 1) < 1e-4:
        return True
    raise UserError(
        f"the poses are normalised otherwise than in {directory} (scale {outputs.dataparser_scale:.6g}, there "
        f"{written['scale']:.6g}; {'the same' if same_transform else 'another'} transform): the field would be seen "
        "from wrong places. Give the --data of that run, with all its frames, and no other dataparser settings"
    )
