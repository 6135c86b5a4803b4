"""Edits of scenes from Python: what `ns-train cds` does."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import writer

from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import Interrupted, UserError
from cds_nerf.nerf.checkpoints import checkpoint_files
from cds_nerf.nerf.train_options import command_line, normalised, parse


@dataclass(frozen=True)
class SceneEdit:
    """An edited scene."""

    directory: Path
    """The run folder, which the ns- commands open by the config.yml in it."""

    checkpoint: Path
    """The edited field."""

    @property
    def views(self) -> list[Path]:
        """Pictures of the edited training views, in the order of the cameras; the source's are in `source/views`."""
        return sorted((self.directory / "edited_views").glob("*.png"))

    @property
    def video(self) -> Path | None:
        """Before and after, side by side; None where the edit was asked for no video."""
        path = self.directory / "before_after.mp4"
        return path if path.exists() else None


def edit_scene(
    source_run: Path | str | None = None,
    source_prompt: str | None = None,
    target_prompt: str | None = None,
    diffusion: str | Path | DiffusionOptions | None = None,
    output: Path | str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    resume_from: Path | str | None = None,
    **options: Any,
) -> SceneEdit:
    """Edit a trained field from what one prompt says to what another says, or go on with an edit.

    It is `ns-train cds`, and what is not given is as there: the source run's, the diffusion model's, or the method's
    default; but no viewer is started unless `vis` asks for one.

    Args:
        source_run: the run whose field is edited: its folder, its nerfstudio_models, or a checkpoint file.
        source_prompt: describes the scene as it is.
        target_prompt: describes it as it should become.
        diffusion: the text-to-image model: a hub id, a diffusers folder, a .safetensors file or "shapes"; or all that
            can be said of it.
        output: the folder of all runs, by default "outputs"; the edit's is OUTPUT/SCENE/cds/TIME in it.
        steps: how many the edit has in the end, 1000 by default.
        seed: of all that is random, 42 by default.
        resume_from: the folder of an edit that was interrupted or is to have more steps, in place of a source run.
        options: further options of `ns-train cds` by their dotted names, with underscores or dashes, such as
            `**{"pipeline.guidance.w_cut": 15}` or `timestamp="first"`.

    Raises:
        UserError: if an option cannot be used, a file cannot be read or written, or a limit of the machine's is met;
            the message says what to do.
        KeyboardInterrupt: after Ctrl-C; the message says how the edit goes on.
    """
    given = {
        "load-dir": source_run,
        "pipeline.source-prompt": source_prompt,
        "prompt": target_prompt,
        "output-dir": output,
        "max-num-iterations": steps,
        "machine.seed": seed,
        "pipeline.resume-from": resume_from,
        **_model_options(diffusion),
    }
    named = {name.replace("_", "-"): value for name, value in options.items()}
    for name in named.keys() & {name for name, value in given.items() if value is not None}:
        raise UserError(f"{name} is given twice, as an argument of its own and among the options")
    given = {name: value for name, value in given.items() if value is not None}
    config = parse(command_line("cds", normalised({"vis": "tensorboard"} | named | given, "cds")))
    writer.EVENT_WRITERS.clear()  # of an edit before, in this process
    writer.EVENT_STORAGE.clear()
    try:
        config.set_timestamp()
        config.save_config()
        train_loop(local_rank=0, world_size=1, config=config)
    except Interrupted as error:
        raise KeyboardInterrupt(str(error)) from error
    return SceneEdit(config.get_base_dir(), checkpoint_files(config.get_checkpoint_dir())[-1])


def _model_options(diffusion: str | Path | DiffusionOptions | None) -> dict[str, Any]:
    if not isinstance(diffusion, DiffusionOptions):
        return {"pipeline.diffusion-model.model": diffusion}
    return {
        f"pipeline.diffusion-model.{field.name.replace('_', '-')}": value
        for field in fields(diffusion)
        if (value := getattr(diffusion, field.name)) != field.default or field.name == "model"
    }
