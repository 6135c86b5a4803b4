"""The settings of an edit that goes on: its own, and of what was typed only what may change under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfstudio.utils.rich_utils import CONSOLE

from cds_nerf.errors import UserError
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.settings_check import check_recorded_values
from cds_nerf.nerf.source_run import find_data, read_run_config, run_of
from cds_nerf.nerf.typed_settings import PARSER, as_typed, is_within, shown, write_out
from cds_nerf.typed_options import set_value_at, value_at

FREE_ON_RESUME = (
    "max_num_iterations",
    "vis",
    "viewer",
    "start_paused",
    "logging",
    "steps_per_save",
    "machine.device_type",
    "machine.num_devices",
    "data",
    "pipeline.datamanager.data",
    "pipeline.diffusion_model.device",
    "pipeline.diffusion_model.dtype",
    "pipeline.diffusion_model.gradient_checkpointing",
    "pipeline.diffusion_model.vae_tiling",
    "pipeline.diffusion_model.cpu_offload",
    "pipeline.guidance_device",
    "pipeline.guidance_dtype",
    "pipeline.rays_per_chunk",
    "pipeline.encoder_checkpointing",
)
"""What may change while an edit is under way, with all below it: how far it goes, where it runs, how it is watched."""


def settle_resumed_edit(config: EditConfig) -> None:
    """Take, in place, the settings of the run to resume, and of what was typed what may change.

    Args:
        config: after `settle_typed`.

    Raises:
        UserError: if there is no such run, what was typed is another edit, or a device or the data is not there.
    """
    assert config.pipeline.resume_from is not None
    if config.load_dir is not None or config.load_checkpoint is not None:
        raise UserError("--load-dir starts a new edit and --pipeline.resume-from continues one: give one of them")
    location = config.pipeline.resume_from
    if not location.expanduser().exists():
        raise UserError(f"--pipeline.resume-from {location} does not exist: give the folder of an interrupted edit")
    directory, _ = run_of(location.expanduser())
    run = read_run_config(directory, exactly=True)
    if not isinstance(run, EditConfig) or run.pipeline.source_checkpoint is None:
        raise UserError(
            f"--pipeline.resume-from {directory} is a {run.method_name} run, not an edit: edit it with --load-dir"
        )
    if directory.parent.name != run.method_name:
        directory = directory.resolve()
    if directory.parent.name != run.method_name:
        raise UserError(
            f"--pipeline.resume-from {directory}: nerfstudio finds a run only under SCENE/{run.method_name}/TIME, "
            f"move it into a folder named {run.method_name}"
        )
    for short in ("pipeline.diffusion", "pipeline.guidance_device", "pipeline.guidance_dtype"):
        write_out(run, short)  # where version 0.1.0 kept it
    views_a_step = run.machine.num_devices * run.pipeline.views_per_step
    free = {path for path in config.typed or () if any(is_within(path, other) for other in FREE_ON_RESUME)}
    for path in free:
        set_value_at(run, path, value_at(config, path))
    _share_views(run, views_a_step)
    check_recorded_values(run)
    run.data = run.pipeline.datamanager.data = find_data(run, directory)
    run.output_dir, run.experiment_name, run.timestamp = directory.parents[2], directory.parents[1].name, directory.name
    for path in config.typed or ():
        if path not in free | {"pipeline.resume_from"} and not _agrees(config, run, path):
            raise UserError(
                f"{as_typed(path)} is {shown(value_at(config, path))}, but the run that is resumed has "
                f"{shown(_value_or_none(run, path))}, which stays: start a new edit with --load-dir "
                f"{directory / run.relative_model_dir} to change it"
            )
    vars(config).update(vars(run))


def _share_views(run: EditConfig, views_a_step: int) -> None:
    """Let another number of devices take as many views a step together, or the next more that they can share.

    Fewer would draw again, under the number that a draw has, what earlier steps have drawn.
    """
    number = max(run.machine.num_devices, 1)
    run.pipeline.views_per_step = -(-views_a_step // number)
    shared = run.pipeline.views_per_step * number
    if shared != views_a_step:
        CONSOLE.print(
            f"--machine.num-devices {number} makes {shared} views a step of {views_a_step}: from here on the steps are "
            "others than without it."
        )


def _agrees(config: EditConfig, run: EditConfig, path: str) -> bool:
    """Whether what was typed is what the run has anyway."""
    typed, own = value_at(config, path), _value_or_none(run, path)
    if path == PARSER:  # whose settings are typed one by one
        return type(typed) is type(own)
    return typed == own or (isinstance(own, Path) and isinstance(typed, Path) and typed.resolve() == own.resolve())


def _value_or_none(config: EditConfig, path: str) -> Any:
    try:
        return value_at(config, path)
    except LookupError:
        return None
