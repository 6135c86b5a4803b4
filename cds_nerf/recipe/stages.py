"""The stages of a recipe, each skipped where it is done and resumed where it stopped: source, edit, pictures of both.

The runs are those of ns-train, which makes them: a stage can be continued, and its result opened, without the recipe.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from cds_nerf.diffusion.pretrained import model_folder
from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.image.naming import slug
from cds_nerf.nerf.completion import FREE_ON_RESUME, check_values
from cds_nerf.nerf.configuration import DEFAULT_ITERATIONS, EditConfig
from cds_nerf.nerf.held_out import render_held_out
from cds_nerf.nerf.source_run import SourceRun, read_checkpoint
from cds_nerf.recipe.options import PARSER, command_line, normalised, parse
from cds_nerf.recipe.recipe import Recipe

SETTINGS_FILE = "recipe.json"
"""In a run's folder: the options that the recipe gave it."""
WATCHING = {"vis": "tensorboard", "viewer.quit-on-train-completion": True, "steps-per-save": 100}
"""A stage's options unless the recipe has others: it ends by itself, and little is lost where it is interrupted."""
FREE = {".".join(path).replace("_", "-") for path in FREE_ON_RESUME}
"""Options that may change while a run is under way; all below them, too."""
MANAGED = {
    "output-dir": "output",
    "experiment-name": "output",
    "timestamp": "name",
    "data": "capture",
    "pipeline.datamanager.data": "capture",
    f"{PARSER}.data": "capture",
    "machine.seed": "seed",
    "load-dir": "source_run",
    "load-step": "source_run",
    "load-checkpoint": "source_run",
    "load-config": "source_run",
    "method-name": "stages",
    "relative-model-dir": "output",
    "prompt": "target_prompt",
    "pipeline.model.prompt": "target_prompt",
    "pipeline.source-prompt": "source_prompt",
    "pipeline.target-prompt": "target_prompt",
    "pipeline.diffusion": "diffusion",
    "pipeline.resume-from": "output",
    "pipeline.source-checkpoint": "source_run",
}
"""Options that follow from a recipe's keys."""


@dataclass(frozen=True)
class Stage:
    """One run of ns-train: what it should be, and how far it has come."""

    key: str
    """Of the recipe: "source" or "edit"."""
    method: str
    """Of ns-train."""
    folder: Path
    """The run folder: OUTPUT/METHOD/NAME."""
    options: dict[str, list[str]]
    """All of ns-train's options, but for where to start from and how many steps to make."""
    steps: int
    """How many it should have made in the end."""
    last_file: str | None = None
    """What the run folder holds once all is done, beside the last checkpoint."""

    def checkpoint(self) -> tuple[Path | None, int]:
        """The newest whole checkpoint and the number of its steps; (None, 0) without one. Broken ones are deleted."""
        for path in sorted((self.folder / "nerfstudio_models").glob("step-*.ckpt"), reverse=True):
            try:
                return path, int(read_checkpoint(path)["step"]) + 1
            except UserError:
                path.unlink()  # of a run that was killed while it wrote
        return None, 0

    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.checkpoint()[1] >= self.steps and (
            self.last_file is None or (self.folder / self.last_file).exists()
        )

    def check_settings(self) -> None:
        """Check that what has been made was made with these options.

        Raises:
            UserError: if it was not; the first option that differs is named.
        """
        if not self.folder.exists():
            return
        way_out = f"choose another {'output' if self.key == 'source' else 'name'}, or delete that folder"
        try:
            before = json.loads((self.folder / SETTINGS_FILE).read_text("utf8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} is there, but no recipe made it: {way_out}") from error
        for name in sorted({*before, *self._fixed()}):
            old, new = before.get(name), self._fixed().get(name)
            if old != new:
                was, wanted = ("its default" if words is None else " ".join(words) for words in (old, new))
                raise UserError(f"{self.folder} was made with {name} {was}, the recipe says {wanted}: {way_out}")

    def run(self, start: Mapping[str, Any]) -> None:
        """Do what is left to do.

        Args:
            start: options that a run takes which starts from nothing.

        Raises:
            UserError: if ns-train fails, or is stopped.
        """
        checkpoint, steps = self.checkpoint()
        if self.done():
            print(f"{self.key}: {self.folder} has its {self.steps} steps")
            return
        options = self.options | {"max-num-iterations": [str(self.steps)]}
        if self.method == "cds" and (self.folder / "config.yml").exists():
            free = {name: words for name, words in options.items() if _is_free(name)}
            options = {"pipeline.resume-from": [str(self.folder)]} | free
        elif checkpoint is not None:  # nerfstudio counts the steps from there
            options |= {"load-checkpoint": [str(checkpoint)], "max-num-iterations": [str(self.steps - steps)]}
        else:
            options |= {name: [str(value)] for name, value in start.items()}
        print(f"{self.key}: {f'step {steps} of {self.steps}' if steps else f'{self.steps} steps'} in {self.folder}")
        with whole_file(self.folder / SETTINGS_FILE) as file:
            file.write_text(json.dumps(self._fixed(), indent=2), "utf8")
        status = _run([sys.executable, "-m", "nerfstudio.scripts.train", *command_line(self.method, options)])
        if status != 0 or not self.done():  # nerfstudio's own trainers end with status 0 after Ctrl-C
            raise UserError(f"the {self.key} stage did not end well; the same command goes on where it stopped")

    def _fixed(self) -> dict[str, list[str]]:
        return {name: words for name, words in self.options.items() if not _is_free(name)}


def run_recipe(recipe: Recipe) -> Path:
    """Run all stages that are not done.

    Returns:
        The folder of the edit's run.

    Raises:
        UserError: if anything cannot be as the recipe says, before the first stage starts; or if a stage fails.
    """
    output = recipe.output.resolve()
    source = None if recipe.source_run is not None else _source_stage(recipe, output)
    if source is None:
        assert recipe.source_run is not None
        source_run = SourceRun.find(recipe.source_run).directory.resolve()
    else:
        source_run = source.folder
    edit = _edit_stage(recipe, output, source_run)
    for stage in (source, edit):
        if stage is not None:
            stage.check_settings()
    if not edit.done():
        _check_edit(edit)

    pictures = output / "held_out"
    for stage, run, name, start in (
        (source, source_run, "source", {}),
        (edit, edit.folder, edit.folder.name, {"load-dir": source_run / "nerfstudio_models"}),
    ):
        if stage is not None and not stage.done():
            shutil.rmtree(pictures / name, ignore_errors=True)
        if stage is not None:
            stage.run(start)
        if not (pictures / name).exists():
            render_held_out(run, pictures / name)
    print(f"held-out views: {pictures / 'source'} and {pictures / edit.folder.name}")
    if edit.last_file is not None:
        print(f"video: {edit.folder / edit.last_file}")
    print(f"open it: ns-viewer --load-config {edit.folder / 'config.yml'}")
    return edit.folder


def _source_stage(recipe: Recipe, output: Path) -> Stage:
    options = _options(recipe, output, "source", "cds-source", "run")
    if PARSER not in options and not _has_transforms(recipe.capture):
        raise UserError(
            f"capture {recipe.capture} has no transforms.json: make one with ns-process-data, or say with "
            f"`{PARSER}: colmap` in source what it is"
        )
    config = parse(command_line("cds-source", options))
    return Stage("source", "cds-source", output / "cds-source" / "run", options, config.max_num_iterations)


def _edit_stage(recipe: Recipe, output: Path, source_run: Path) -> Stage:
    name = recipe.name or slug(recipe.target_prompt)
    options = _options(recipe, output, "edit", "cds", name)
    options |= {
        "pipeline.source-prompt": [recipe.source_prompt],
        "prompt": [recipe.target_prompt],
        "pipeline.diffusion": [recipe.diffusion],
    }
    config = cast(EditConfig, parse(command_line("cds", options)))
    return Stage(
        "edit",
        "cds",
        output / "cds" / name,
        options,
        config.max_num_iterations or DEFAULT_ITERATIONS,
        "before_after.mp4" if config.pipeline.orbit_frames else None,
    )


def _options(recipe: Recipe, output: Path, key: str, method: str, name: str) -> dict[str, list[str]]:
    """A stage's options: the recipe's own, and what follows from its keys."""
    try:
        given = normalised(getattr(recipe, key), method, MANAGED)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    options = normalised(WATCHING, method, {}) | given
    options |= {
        "output-dir": [str(output.parent)],
        "experiment-name": [output.name],
        "timestamp": [name],
        "machine.seed": [str(recipe.seed)],
    }
    if recipe.capture is not None:
        options["data"] = [str(recipe.capture.resolve())]
    return options


def _check_edit(edit: Stage) -> None:
    """Check all of an edit that can be checked before its source is there; the diffusion model is downloaded now."""
    config = cast(EditConfig, parse(command_line("cds", edit.options)))
    check_values(config)
    if not Path(model := config.pipeline.diffusion).is_file():
        on_cpu = (config.pipeline.guidance_device or config.machine.device_type) == "cpu"
        dtype = config.pipeline.guidance_dtype or ("float32" if on_cpu else "float16")
        model_folder(model, getattr(torch, dtype))


def _has_transforms(capture: Path | None) -> bool:
    return capture is None or capture.suffix == ".json" or (capture / "transforms.json").is_file()


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def _run(command: list[str]) -> int:
    """Run a program to its end; after Ctrl-C, which it gets as well, it may save what it has."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
