"""The run whose field is edited: its settings and its checkpoint."""

from __future__ import annotations

import json
import os
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.models.base_surface_model import SurfaceModelConfig
from nerfstudio.models.instant_ngp import InstantNGPModelConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.external import TCNN_EXISTS
from nerfstudio.utils.rich_utils import CONSOLE

from cds_nerf.errors import UserError, first_line
from cds_nerf.nerf.config_loader import absent_in, load_config

CONFIG_FILE = "config.yml"
"""A run's settings, in its folder."""

TRANSFORMS_FILE = "dataparser_transforms.json"
"""Where nerfstudio writes down how it normalised the poses of a run."""
POSES = "_model.camera_optimizer.pose_adjustment"
"""The name of the optimised poses in a checkpoint."""
OLD_POSES = "datamanager.train_camera_optimizer.pose_adjustment"
"""Their name in checkpoints of versions before 1.0."""
ELSEWHERE = "edit it where it was trained, or use a field of another method, such as nerfacto or cds-source"
WAY_OUT = "was the run made by a plugin that is not installed here, or by another nerfstudio?"


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
            location: a run folder, the checkpoint folder in it, its `config.yml` or one checkpoint file; or a link to
                one of them.
            step: the checkpoint's step; the newest without it.

        Raises:
            UserError: if there is no such run, no checkpoint in it, or its `config.yml` cannot be read; or a step is
                given with a file.
        """
        place = location.expanduser()
        if not place.exists():
            raise UserError(f"--load-dir {location} does not exist: give the folder of a finished run")
        directory, place = run_of(place)
        config = read_run_config(directory)
        if place in (directory, directory / CONFIG_FILE):
            place = directory / config.relative_model_dir
        if not place.is_file():
            return cls(directory, config, _choose_checkpoint(place, step))
        if step is not None:
            raise UserError(
                f"--load-step is {step}, but {location} is one checkpoint: give its run's folder, or no step"
            )
        return cls(directory, config, place)

    def model(self) -> ModelConfig:
        """The model's settings, corrected where the checkpoint says otherwise."""
        model: Any = deepcopy(self.config.pipeline.model)
        names = model_state(read_checkpoint(self.checkpoint)["pipeline"]).keys()
        if hasattr(model, "implementation") and not any(name.endswith("tcnn_encoding.params") for name in names):
            model.implementation = "torch"  # which nerfstudio falls back to without tiny-cuda-nn
        if hasattr(model, "camera_optimizer") and POSES not in names:
            model.camera_optimizer.mode = "off"  # a setting of the data in older versions of nerfstudio
        return model

    @property
    def trains_on_images(self) -> bool:
        """Whether the run's method draws whole images, and no rays."""
        return isinstance(self.config.pipeline.datamanager, FullImageDatamanagerConfig)

    def check_kind(self) -> None:
        """Check that what the run has trained is of a kind that can be edited here, as far as its settings tell.

        Raises:
            UserError: if it trains on whole images and is not splatfacto, or on none, or needs what is not here.
        """
        model: Any = self.config.pipeline.model
        method = f"{self.directory} is a {self.config.method_name} run"
        if self.trains_on_images and type(model) is not SplatfactoModelConfig:
            raise UserError(
                f"{method}, whose {type(model).__name__} cds cannot edit: it edits ray-based fields, such as "
                "nerfacto's, and splatfacto's splats"
            )
        if not hasattr(self.config.pipeline.datamanager, "dataparser"):
            raise UserError(
                f"{method}, which has no capture whose cameras an edit could look through: cds edits fields that were "
                "trained on photographs, such as nerfacto's"
            )
        if isinstance(model, SurfaceModelConfig) and not TCNN_EXISTS:
            raise UserError(f"{method}, which needs tiny-cuda-nn, and that is not installed here: {ELSEWHERE}")
        if isinstance(model, InstantNGPModelConfig) and not torch.cuda.is_available():
            raise UserError(f"{method}, which renders with CUDA alone, and there is none here: {ELSEWHERE}")

    def parameter_groups(self) -> set[str]:
        """The names of the model's parameter groups, but for the cameras' poses."""
        trained = read_checkpoint(self.checkpoint).get("optimizers", {})
        return {*trained, *self.config.optimizers} - {"camera_opt"}

    def dataset(self) -> type[InputDataset]:
        """What the run's model compares with photographs: these alone, or more."""
        datamanager: Any = self.config.pipeline.datamanager
        target = datamanager._target
        bases = (target, *getattr(target, "__orig_bases__", ()))
        kinds = [getattr(datamanager, "dataset", None), *(kind for base in bases for kind in get_args(base))]
        return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, InputDataset)), InputDataset)

    def data(self) -> Path:
        """Where the run's data are (see `find_data`)."""
        return find_data(self.config, self.directory)


def run_of(place: Path) -> tuple[Path, Path]:
    """The folder of the run that a place belongs to, and the place by a name without links, `.` and `..`.

    The run's folder is the place, one of the two folders above it, or so for what it links to.

    Raises:
        UserError: if none of these holds a `config.yml`.
    """
    places = Path(os.path.abspath(place)), place.resolve()
    for start in places:
        for folder in (start, *start.parents[:2]):
            if (folder / CONFIG_FILE).is_file():
                return folder, start
    missing = (places[0].parents[1] if place.is_file() else places[0].parent) / CONFIG_FILE
    raise UserError(
        f"{missing} is missing: it says how the run's model is built; give the run folder, or its nerfstudio_models"
    )


LAST_SETTING = "vis"
"""With which a config.yml ends, whose settings are sorted: one that is cut off may be as good YAML as a whole one."""


def read_run_config(directory: Path, exactly: bool = False) -> TrainerConfig:
    """The `config.yml` of a run folder; nothing in it is executed (see `config_loader`).

    Args:
        directory: the run folder.
        exactly: refuse what the installed versions do not know, in place of leaving it out with a warning.

    Raises:
        UserError: if it is missing or cannot be read.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{path} is missing: it says how the run's model is built; give the run folder, or its nerfstudio_models"
        )
    config, left_out = load_config(path)
    if exactly and not re.search(rf"^{LAST_SETTING}:", path.read_text("utf8"), re.MULTILINE):
        raise UserError(f"{path} cannot be read (it ends before its {LAST_SETTING}): is it whole?")
    if not isinstance(config, TrainerConfig):
        what = f", but {absent}: {WAY_OUT}" if (absent := absent_in(config)) else ""
        raise UserError(f"{path} is not the configuration of a nerfstudio run{what}")
    pipeline: Any = config.pipeline
    for name, part, kind in (
        ("pipeline", pipeline, VanillaPipelineConfig),
        ("pipeline.model", getattr(pipeline, "model", None), ModelConfig),
        ("pipeline.datamanager", getattr(pipeline, "datamanager", None), DataManagerConfig),
    ):
        if not isinstance(part, kind):
            raise UserError(f"{path} has no {name}, but {absent_in(part) or type(part).__name__}: {WAY_OUT}")
    for name, part in (
        ("pipeline.model", pipeline.model),
        ("pipeline.datamanager.dataparser", getattr(pipeline.datamanager, "dataparser", None)),
    ):
        if absent := absent_in(part):
            raise UserError(f"{path} has a {name} with {absent}, which the versions here do not know: {WAY_OUT}")
    if left_out and exactly:
        raise UserError(f"{path} was written by other versions: those here do not know {', '.join(left_out)}")
    if left_out:
        CONSOLE.print(f"[yellow]{path}: left out, as the versions here do not know it: {', '.join(left_out)}")
    return config


def find_data(config: TrainerConfig, directory: Path) -> Path:
    """Where a run's data is: seen from here, or from where the run was started.

    Args:
        config: of the run.
        directory: the run folder, still in its place below the folder that the run was started in.

    Raises:
        UserError: if it is in neither place.
    """
    datamanager: Any = config.pipeline.datamanager
    data = datamanager.data or getattr(getattr(datamanager, "dataparser", None), "data", None)
    if data is None:
        raise UserError(f"{directory / CONFIG_FILE} names no data: give --data")
    places = [data.expanduser()]
    outputs, within = Path(os.path.abspath(directory)).parents[2:], config.output_dir.parts
    if not data.is_absolute() and not config.output_dir.is_absolute() and outputs[0].parts[-len(within) :] == within:
        places.append(outputs[len(within)] / data)
    for place in places:
        if place.exists():
            return place
    raise UserError(f"the data {' or '.join(map(str, places))} of {directory} is not there: give --data")


def model_state(state: dict[str, Any]) -> dict[str, Any]:
    """The model's weights in a checkpoint, by the names that they have on one device.

    What nerfstudio's pipelines and data managers add, and the network of a metric, is left out. The poses of versions
    before 1.0, which were the data manager's, become the model's.

    Args:
        state: "pipeline" of a checkpoint.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    model = {key: value for key, value in state.items() if key.startswith("_model.")}
    if all(key.startswith("_model.module.") for key in model):  # of several devices
        model = {key.replace("_model.module.", "_model.", 1): value for key, value in model.items()}
    if POSES not in model and OLD_POSES in state:
        model[POSES] = state[OLD_POSES]
    return {key: value for key, value in model.items() if not key.startswith("_model.lpips.")}


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
    """A nerfstudio checkpoint, memory-mapped where that goes: what is not looked at is not read.

    Raises:
        UserError: if the file is no checkpoint, or cannot be read now.
    """
    try:
        checkpoint = _load(path)
    except FileNotFoundError as error:
        raise UserError(
            f"the checkpoint {path} is not there, from which an edit starts until it has saved one of its own: "
            "put it back, or start a new edit with --load-dir"
        ) from error
    except Exception as error:  # torch has none of its own for a broken file: almost any of Python's comes out
        raise UserError(
            f"the checkpoint {path} cannot be read ({first_line(error)}): is it whole, and one of nerfstudio's?"
        ) from error
    if not (
        isinstance(checkpoint, dict)
        and isinstance(checkpoint.get("step"), int)
        and isinstance(checkpoint.get("pipeline"), dict)
    ):
        raise UserError(f"{path} is no checkpoint of a nerfstudio run: give the nerfstudio_models folder of one")
    return checkpoint


def _load(path: Path) -> Any:
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)  # torch 2.1 maps no Path
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError):  # a filesystem without mmap, or torch's older format
        return torch.load(path, map_location="cpu", weights_only=True)


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
