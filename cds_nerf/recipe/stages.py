"""The stages of a recipe, each skipped where it is done and resumed where it stopped: source, edit, pictures of both.

The runs are those of ns-train, which makes them: a stage can be continued, and its result opened, without the recipe.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from cds_nerf.errors import Terminated, UserError
from cds_nerf.files import PARTIAL, whole_file
from cds_nerf.image.naming import slug
from cds_nerf.locking import RUN_LOCK, check_free, held
from cds_nerf.nerf.checkpoints import newest_checkpoint
from cds_nerf.nerf.configuration import DEFAULT_ITERATIONS, EditConfig
from cds_nerf.nerf.held_out import render_held_out
from cds_nerf.nerf.resumed_edit import FREE_ON_RESUME
from cds_nerf.nerf.settings_check import check_values
from cds_nerf.nerf.source_run import SourceRun, read_run_config
from cds_nerf.nerf.train_options import PARSER, command_line, normalised, parse
from cds_nerf.recipe.origin import Origin
from cds_nerf.recipe.recipe import SOURCE_METHODS, Recipe
from cds_nerf.termination import on_sigterm

SETTINGS_FILE = "recipe.json"
"""In a run's folder: the options that the recipe gave it, and what it was made from."""
MADE_FROM = "made from"
"""The key of the latter."""
WATCHING = {"vis": "tensorboard", "viewer.quit-on-train-completion": True, "steps-per-save": 100}
"""A stage's options unless the recipe has others: it ends by itself, and little is lost where it is interrupted."""
FREE = {path.replace("_", "-") for path in FREE_ON_RESUME}
"""Options that may change while a run is under way; all below them, too."""
PLACE = {"output-dir", "experiment-name", "timestamp"}
"""Options that say where a run is, and nothing of what it is."""
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
    "pipeline.diffusion-model.model": "diffusion",
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
        """As `newest_checkpoint`, of the run."""
        return newest_checkpoint(self.folder / "nerfstudio_models")

    def done(self) -> bool:
        """Whether nothing is left to do.

        Raises:
            UserError: as `checkpoint`.
        """
        return self.checkpoint()[1] >= self.steps and (
            self.last_file is None or (self.folder / self.last_file).exists()
        )

    @property
    def lock(self) -> Path:
        """What a recipe holds while it makes the stage; the run has a lock of its own in its folder."""
        name = "source" if self.key == "source" else self.folder.name  # no edit can be called so
        return self.folder.parents[1] / f".{name}.lock"

    @property
    def busy(self) -> str:
        """What is so while another process makes the stage."""
        return f"{self.folder} is being made"

    def check_free(self) -> None:
        """Check that no other process makes it.

        Raises:
            UserError: if one does.
        """
        check_free(self.lock, self.busy)
        check_free(self.folder / RUN_LOCK, self.busy)

    def begun(self) -> bool:
        """Whether anything has been made of it; a folder that was made and nothing else is not."""
        return self.folder.exists() and any(
            path.name != RUN_LOCK and not path.name.startswith(PARTIAL) for path in self.folder.iterdir()
        )

    def check_settings(self, origins: Mapping[str, Origin]) -> None:
        """Check that what has been made was made with these options, and from the same.

        Args:
            origins: the capture and the source that the recipe would have it made from, where they are known.

        Raises:
            UserError: if it was not; the first that differs is named.
        """
        if not self.begun():
            return
        way_out = f"choose another {'output' if self.key == 'source' else 'name'}, or move that folder away"
        path = self.folder / SETTINGS_FILE
        try:
            before = json.loads(path.read_text("utf8"))
            made_from = {name: Origin(**origin) for name, origin in before.pop(MADE_FROM, {}).items()}
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} is there, but no recipe made it: {way_out}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:  # the disk; no JSON; none of a recipe's
            raise UserError(f"{path} cannot be read ({error}): {way_out}") from error
        for name in sorted({*before, *self._fixed()} - PLACE):
            old, new = before.get(name), self._fixed().get(name)
            if old != new:
                was, wanted = ("its default" if words is None else " ".join(words) for words in (old, new))
                raise UserError(f"{self.folder} was made with {name} {was}, the recipe says {wanted}: {way_out}")
        if not made_from.keys() >= origins.keys():
            made_from = self._configured_origins() | made_from
        for name, origin in origins.items():
            if name in made_from and not origin.is_same(made_from[name]):
                was = made_from[name].path
                now = "what is there now is another" if was == origin.path else f"the recipe's is {origin.path}"
                raise UserError(f"{self.folder} was made from the {name} {was}, {now}: {way_out}")

    def run(self, start: Mapping[str, Any], origins: Mapping[str, Origin]) -> None:
        """Do what is left to do.

        Args:
            start: options that a run takes which starts from nothing.
            origins: what it is made from.

        Raises:
            UserError: if ns-train fails, or is stopped.
            Terminated: if it is stopped by SIGTERM.
        """
        self.check_settings(origins)
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
        made_from = {name: asdict(origin) for name, origin in origins.items()}
        with whole_file(self.folder / SETTINGS_FILE) as file:
            file.write_text(json.dumps({**self._fixed(), MADE_FROM: made_from}, indent=2), "utf8")
        status = _run([sys.executable, "-m", "nerfstudio.scripts.train", *command_line(self.method, options)])
        if status in (Terminated.status, -signal.SIGTERM):
            raise Terminated(f"the {self.key} stage was terminated; the same command goes on where it stopped")
        if status != 0 or not self.done():  # nerfstudio's own trainers end with status 0 after Ctrl-C
            raise UserError(f"the {self.key} stage did not end well; the same command goes on where it stopped")

    def _fixed(self) -> dict[str, list[str]]:
        return {name: words for name, words in self.options.items() if not _is_free(name)}

    def _configured_origins(self) -> dict[str, Origin]:
        """What the run's configuration says, for those of version 0.1.0, whose recipes did not write it down.

        A capture that is gone has been moved, and is not compared.
        """
        if not (self.folder / "config.yml").exists():
            return {}
        pipeline: Any = read_run_config(self.folder).pipeline
        capture, source = pipeline.datamanager.data, getattr(pipeline, "source_checkpoint", None)
        origins = {} if capture is None or not capture.exists() else {"capture": Origin.of_capture(capture)}
        if source is not None:
            origins["source"] = Origin.of_checkpoint(source) if source.exists() else Origin(str(source))
        return origins


def run_recipe(recipe: Recipe) -> Path:
    """Run all stages that are not done.

    Returns:
        The folder of the edit's run.

    Raises:
        UserError: if anything cannot be as the recipe says, before the first stage starts; or if a stage fails.
    """
    output = recipe.output.resolve()
    source = _source_stage(recipe, output) if recipe.source_run is None else SourceRun.find(recipe.source_run)
    edit = _edit_stage(recipe, output)
    cameras = {"capture": Origin.of_capture(recipe.capture or cast(SourceRun, source).data())}

    for stage in (source, edit):
        if isinstance(stage, Stage):
            stage.check_free()
    if isinstance(source, Stage):
        source.check_settings(cameras)
        if edit.begun() and not source.done():
            raise UserError(
                f"{edit.folder} was made from {source.folder} as it was, and the recipe takes that to {source.steps} "
                "steps: choose another name for an edit of it"
            )
    checkpoint = _checkpoint(source)
    edit.check_settings(cameras if checkpoint is None else cameras | {"source": Origin.of_checkpoint(checkpoint)})
    if not edit.done():
        _check_edit(edit)

    pictures = output / "held_out"
    with held(edit.lock, edit.busy):
        with held(output / ".source.lock", f"the source in {output} is being made"):
            if isinstance(source, Stage):
                source.run({}, cameras)
            checkpoint = _checkpoint(source)
            assert checkpoint is not None
            _show(checkpoint, pictures / "source", recipe.capture)
        edit.run({"load-dir": checkpoint}, cameras | {"source": Origin.of_checkpoint(checkpoint)})
        _show(cast(Path, edit.checkpoint()[0]), pictures / edit.folder.name, recipe.capture)
    print(f"held-out views: {pictures / 'source'} and {pictures / edit.folder.name}")
    if edit.last_file is not None:
        print(f"video: {edit.folder / edit.last_file}")
    print(f"open it: ns-viewer --load-config {edit.folder / 'config.yml'}")
    return edit.folder


def _checkpoint(source: Stage | SourceRun) -> Path | None:
    """What is edited, if it is there."""
    return source.checkpoint if isinstance(source, SourceRun) else source.checkpoint()[0]


def _show(checkpoint: Path, folder: Path, data: Path | None) -> None:
    """Render the held-out views where the pictures are not there or older; what else lies there stays."""
    if not folder.exists():
        render_held_out(checkpoint, folder, data)
    elif any(picture.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns for picture in folder.glob("*.png")):
        with TemporaryDirectory(prefix=PARTIAL, dir=folder.parent) as fresh:
            render_held_out(checkpoint, Path(fresh), data)
            for picture in Path(fresh).iterdir():
                picture.replace(folder / picture.name)


def _source_stage(recipe: Recipe, output: Path) -> Stage:
    method = SOURCE_METHODS[recipe.field]
    for field, other in SOURCE_METHODS.items():
        if other != method and (output / other).exists():
            raise UserError(
                f"{output} holds a source whose field is {field}, the recipe says {recipe.field}: choose another output"
            )
    options = _options(recipe, output, "source", method, "run")
    if PARSER not in options and not _has_transforms(recipe.capture):
        raise UserError(
            f"capture {recipe.capture} has no transforms.json: make one with ns-process-data, or say with "
            f"`{PARSER}: colmap` in source what it is"
        )
    config = parse(command_line(method, options))
    return Stage("source", method, output / method / "run", options, config.max_num_iterations)


def _edit_stage(recipe: Recipe, output: Path) -> Stage:
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
    options = normalised(WATCHING, method) | given
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
    pipeline = config.pipeline
    pipeline.diffusion_model.check(
        pipeline.source_prompt, pipeline.target_prompt, default_device=config.machine.device_type
    )


def _has_transforms(capture: Path | None) -> bool:
    return capture is None or capture.suffix == ".json" or (capture / "transforms.json").is_file()


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def _run(command: list[str]) -> int:
    """Run a program to its end; after Ctrl-C, which it gets as well, or SIGTERM it may save what it has."""
    with subprocess.Popen(command) as process, on_sigterm(process.terminate):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
