"""What was done to a field, from the run that was trained on photographs to the last edit of an edit."""

from __future__ import annotations

import shlex
from pathlib import Path

from nerfstudio.engine.trainer import TrainerConfig

from cds_nerf.errors import UserError
from cds_nerf.nerf.checkpoints import newest_checkpoint
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.live_settings import FIELD, LOG, read_changes
from cds_nerf.nerf.source_run import read_run_config, run_of
from cds_nerf.nerf.train_options import command_line, normalised
from cds_nerf.typed_options import value_at

ALWAYS_SAID = (
    "pipeline.source_prompt",
    "pipeline.target_prompt",
    "pipeline.diffusion_model.model",
    "max_num_iterations",
    "machine.seed",
)
"""Of an edit's settings, whether they were typed or not."""
NOT_AGAIN = ("load_dir", "load_step", "load_checkpoint", "timestamp", "pipeline.live_changes", "pipeline.resume_from")
"""What was typed to begin with, and is another where the edit is repeated."""


def history(location: Path) -> str:
    """A run's history, the first run first, as a text.

    Args:
        location: the run's folder, or what is in it.

    Raises:
        UserError: if it is no run's, or a run that is there cannot be read.
    """
    if not location.exists():
        raise UserError(f"{location} does not exist: give the folder of a run (outputs/SCENE/cds/TIME)")
    told: list[str] = []
    place: Path | None = location
    while place is not None:
        if told and not place.exists():
            told.append(f"{place} is not there any more; what came before it is not known")
            break
        folder, _ = run_of(place)
        config = read_run_config(folder)
        is_edit = isinstance(config, EditConfig) and config.pipeline.source_checkpoint is not None
        told.append(_edit(folder, config) if is_edit else _training(folder, config))  # type: ignore[arg-type]
        place = config.pipeline.source_checkpoint if is_edit else None  # type: ignore[attr-defined]
    return "\n\n".join(f"{number}. {text}" for number, text in enumerate(reversed(told), start=1))


def _training(folder: Path, config: TrainerConfig) -> str:
    return (
        f"{folder}\n   {config.method_name}, {config.max_num_iterations} steps, seed {config.machine.seed}, "
        f"trained on {config.data or getattr(config.pipeline.datamanager, 'data', None)}"
    )


def _edit(folder: Path, config: EditConfig) -> str:
    pipeline = config.pipeline
    guidance = pipeline.guidance
    _, made = newest_checkpoint(folder / config.relative_model_dir)
    lines = [
        f"{folder}",
        f'edit of "{pipeline.source_prompt}" into "{pipeline.target_prompt}", '
        f"{made} of {config.max_num_iterations} steps, seed {config.machine.seed}",
        f"model {pipeline.diffusion_model.model}, score {guidance.score}, guidance scale {guidance.guidance_scale}, "
        f"w_cut {guidance.w_cut}, w_keep {pipeline.w_keep}, region {pipeline.region.kind}",
    ]
    changes = read_changes(folder / LOG) if (folder / LOG).exists() else {}
    for step, values in sorted(changes.items()):
        if FIELD in values:
            lines.append(f"before step {step}: back to the source's field")
        if settings := [f"{name} {value!r}" for name, value in values.items() if name != FIELD]:
            lines.append(f"from step {step} on: {', '.join(settings)}")
    lines.append(f"repeated by: {repeating_command(folder, config)}")
    return "\n   ".join(lines)


def repeating_command(folder: Path, config: EditConfig) -> str:
    """The command that makes an edit again, in a run folder of its own.

    Args:
        folder: of the edit's run.
        config: of the edit, as its `config.yml` has it.
    """
    steps = config.max_num_iterations
    options: dict[str, object] = {"load_dir": config.pipeline.source_checkpoint}
    for path in dict.fromkeys([*ALWAYS_SAID, *(config.typed or ())]):
        if path not in NOT_AGAIN and (value := _value_or_none(config, path)) is not None:
            options[path] = value
    for group, parts in config.optimizers.items():
        if parts["scheduler"] is not None and parts["scheduler"].max_steps != steps:  # it was taken further
            options[f"optimizers.{group}.scheduler.max_steps"] = parts["scheduler"].max_steps
    if (folder / LOG).exists():
        options["pipeline.live_changes"] = folder / LOG
    return shlex.join(["ns-train", *command_line("cds", normalised(options, "cds"))])


def _value_or_none(config: EditConfig, path: str) -> object:
    try:
        return value_at(config, path)
    except LookupError:
        return None
