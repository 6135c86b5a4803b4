"""From what the user typed to a complete configuration: the source run's settings, or those of the run to resume."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError
from cds_nerf.nerf.configuration import DEFAULT_ITERATIONS, EditConfig
from cds_nerf.nerf.pipeline import PROMPT_FLAGS
from cds_nerf.nerf.source_run import SourceRun, find_data, read_run_config

FREE_ON_RESUME = (
    ("max_num_iterations",),
    ("vis",),
    ("viewer",),
    ("logging",),
    ("steps_per_save",),
    ("machine", "device_type"),
    ("data",),
    ("pipeline", "datamanager", "data"),
    ("pipeline", "guidance_device"),
    ("pipeline", "guidance_dtype"),
    ("pipeline", "rays_per_chunk"),
)
"""What a resumed edit takes from its own command line: how far it goes, where it runs and how it is watched."""


def complete(config: EditConfig, default: EditConfig) -> None:
    """Fill in, in place, what the user left to the source run or to the run that is resumed.

    Values that equal the method's defaults count as not typed.

    Args:
        config: what the command line says.
        default: the method's defaults.

    Raises:
        UserError: if a value is missing, contradicts another, or names something that is not there.
    """
    check_values(config)
    if config.pipeline.source_checkpoint is not None:  # --load-config gave a configuration that is complete
        return
    _take_prompt_alias(config)
    if config.pipeline.resume_from is not None:
        _take_resumed_run(config, default, config.pipeline.resume_from)
        return
    check_prompts(config.pipeline.source_prompt, config.pipeline.target_prompt, PROMPT_FLAGS)
    location = config.load_checkpoint or config.load_dir
    if location is None:
        raise UserError(
            "--load-dir is missing: cds edits a trained field, give the nerfstudio_models folder of its run "
            "(outputs/SCENE/nerfacto/TIME/nerfstudio_models); `ns-train cds-source` makes one"
        )
    _take_source_run(config, default, SourceRun.find(location, config.load_step))
    if (config.get_base_dir() / "config.yml").exists():
        raise UserError(
            f"{config.get_base_dir()} holds a run already: choose another --timestamp, "
            f"or continue it with --pipeline.resume-from {config.get_base_dir()}"
        )


def check_values(config: EditConfig) -> None:
    """Check what can be checked without the source run and the diffusion model.

    Raises:
        UserError: if a device is not there, or a number is too small.
    """
    _check_device(config)
    _check_numbers(config)


def _check_device(config: EditConfig) -> None:
    device = config.machine.device_type
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available[device]:
        raise UserError(f"--machine.device-type is {device}, which torch does not find here: use another, such as cpu")
    if config.machine.num_devices > 1 or config.machine.num_machines > 1:
        raise UserError(
            "cds edits on one device (--machine.num-devices 1); --pipeline.guidance-device cuda:1 puts the diffusion "
            "model on a second one"
        )
    guidance_device = config.pipeline.guidance_device
    if guidance_device is not None:
        try:
            torch.empty(0, device=guidance_device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"--pipeline.guidance-device is {guidance_device}, which torch does not find here"
            ) from error


def _check_numbers(config: EditConfig) -> None:
    least = {
        ("max_num_iterations",): 1,
        ("pipeline", "guidance_resolution"): 1,
        ("pipeline", "draws_per_view"): 1,
        ("pipeline", "rays_per_chunk"): 2,  # nerfstudio's camera optimiser squeezes a chunk of one ray
        ("pipeline", "steps_per_strip"): 1,
        ("pipeline", "orbit_frames"): 0,
        ("pipeline", "w_keep"): 0,
    }
    for path, least_value in least.items():
        value = _at(config, path)
        if value is not None and value < least_value:
            raise UserError(f"{_flag(*path)} is {value}; it must be at least {least_value}")


def _take_prompt_alias(config: EditConfig) -> None:
    """`--prompt` is the target prompt (ns-train hands it to the model's configuration, which has no use for it)."""
    if config.prompt is None:
        return
    if config.pipeline.target_prompt not in ("", config.prompt):
        raise UserError(
            f"--prompt is {config.prompt!r} and --pipeline.target-prompt is {config.pipeline.target_prompt!r}: "
            "they mean the same, give one"
        )
    config.pipeline.target_prompt = config.prompt
    config.pipeline.model.prompt = None


def _take_source_run(config: EditConfig, default: EditConfig, source: SourceRun) -> None:
    """The source's model, data settings and optimizer groups, under what the user typed."""
    if isinstance(source.config.pipeline.datamanager, FullImageDatamanagerConfig):
        raise UserError(
            f"{source.directory} is a {source.config.method_name} run, which renders no rays: "
            "cds edits ray-based fields, such as nerfacto's"
        )
    pipeline, default_pipeline = config.pipeline, default.pipeline
    source_pipeline: Any = source.config.pipeline
    pipeline.model = _typed_over(pipeline.model, default_pipeline.model, source.model(), "pipeline.model")

    parser = pipeline.datamanager.dataparser
    typed_data = parser.data if parser.data != type(parser)().data else None
    pipeline.datamanager.dataparser = _typed_over(
        pipeline.datamanager.dataparser,
        default_pipeline.datamanager.dataparser,
        source_pipeline.datamanager.dataparser,
        "pipeline.datamanager.dataparser",
    )
    if pipeline.datamanager.camera_res_scale_factor == default_pipeline.datamanager.camera_res_scale_factor:
        pipeline.datamanager.camera_res_scale_factor = source_pipeline.datamanager.camera_res_scale_factor
    data = pipeline.datamanager.data or typed_data or source.data()
    if not data.exists():
        raise UserError(f"the data {data} of the source run is not there: give --data")
    config.data = pipeline.datamanager.data = data

    config.optimizers = {
        group: deepcopy(config.optimizers.get(group, config.optimizers["fields"]))
        for group in sorted(source.parameter_groups())  # the poses stay as they are
    }
    config.max_num_iterations = config.max_num_iterations or DEFAULT_ITERATIONS
    for group in config.optimizers.values():
        scheduler = group["scheduler"]
        if isinstance(scheduler, ExponentialDecaySchedulerConfig) and scheduler.max_steps == DEFAULT_ITERATIONS:
            scheduler.max_steps = config.max_num_iterations

    pipeline.source_checkpoint = source.checkpoint
    config.load_dir = config.load_checkpoint = config.load_step = None


def _typed_over(typed: Any, default: Any, base: Any, name: str) -> Any:
    """A copy of the dataclass `base` with what in `typed` differs from `default`."""
    if type(typed) is not type(default):
        return typed
    merged = deepcopy(base)
    for path, value in _differences(typed, default):
        try:
            _at(merged, path)
        except AttributeError as error:
            raise UserError(f"{_flag(name, *path)} is not a setting of the source's {type(base).__name__}") from error
        setattr(_at(merged, path[:-1]), path[-1], value)
    return merged


def _differences(one: Any, other: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The fields, with their paths, in which a configuration differs from another of its type."""
    for field in fields(one):
        value, other_value = getattr(one, field.name), getattr(other, field.name, None)
        if is_dataclass(value) and not isinstance(value, type) and type(value) is type(other_value):
            for path, nested in _differences(value, other_value):
                yield (field.name, *path), nested
        elif value != other_value:
            yield (field.name,), value


def _take_resumed_run(config: EditConfig, default: EditConfig, directory: Path) -> None:
    """All of a run's own configuration, but for what `FREE_ON_RESUME` names."""
    if config.load_dir is not None or config.load_checkpoint is not None:
        raise UserError("--load-dir starts a new edit and --pipeline.resume-from continues one: give one of them")
    if not directory.exists():
        raise UserError(f"--pipeline.resume-from {directory} does not exist: give the folder of an interrupted edit")
    within = (directory, *directory.resolve().parents[:2])  # where its config.yml or a checkpoint was given
    directory = next((folder for folder in within if (folder / "config.yml").is_file()), directory)
    run = read_run_config(directory, exactly=True)
    if type(run) is not type(config) or run.pipeline.source_checkpoint is None:
        raise UserError(
            f"--pipeline.resume-from {directory} is a {run.method_name} run, not an edit: edit it with --load-dir"
        )
    directory = directory.resolve()
    if directory.parent.name != run.method_name:
        raise UserError(
            f"--pipeline.resume-from {directory}: nerfstudio finds a run only under SCENE/{run.method_name}/TIME, "
            f"move it into a folder named {run.method_name}"
        )
    for path, value in _differences(config, default):
        free = any(path[: len(free)] == free for free in (*FREE_ON_RESUME, ("prompt",), ("pipeline", "resume_from")))
        if not free and value != (own := _at(run, path)):
            raise UserError(
                f"{_flag(*path)} is {value!r}, but the run that is resumed has {own!r}, which stays: "
                f"start a new edit with --load-dir {directory / run.relative_model_dir} to change it"
            )
    resumed = deepcopy(run)
    for path in FREE_ON_RESUME:
        if (value := _at(config, path)) is not None:
            setattr(_at(resumed, path[:-1]), path[-1], value)
    resumed.data = resumed.pipeline.datamanager.data = find_data(resumed, directory)
    resumed.output_dir, resumed.experiment_name = directory.parents[2], directory.parent.parent.name
    resumed.timestamp = directory.name
    vars(config).update(vars(resumed))


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        config = getattr(config, part)
    return config


def _flag(*path: str) -> str:
    return "--" + ".".join(path).replace("_", "-")
