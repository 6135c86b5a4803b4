"""The demo: a scene whose edit is known, edited by a recipe, and how good the edit is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from cds_nerf.errors import UserError
from cds_nerf.evaluation.contact_sheet import contact_sheet
from cds_nerf.evaluation.scene_edit import SceneQuality, quality_of_views, quality_table, scene_quality
from cds_nerf.files import whole_file
from cds_nerf.recipe.recipe import SOURCE_METHODS
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.dataset import Capture, edit_name, write_capture, write_ground_truth
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import parse_caption

BUNDLED_RECIPE = Path(__file__).parent / "demo.yaml"
"""The recipe that the demo follows unless it is given another."""
SPLAT_RECIPE = Path(__file__).parent / "demo_splats.yaml"
"""The one that reconstructs splats."""
SHEET_VIEWS = 6
"""Held-out views on the contact sheet, at most."""


@dataclass(frozen=True)
class Demo:
    """One edit of one scene, and where everything of it is."""

    capture: Capture
    """Of the scene as it is."""
    target: str
    """Caption of what it becomes."""
    output: Path
    """Folder for all that is made."""
    recipe: Mapping[str, Any]
    """The keys of the recipe, complete."""

    @classmethod
    def of(
        cls, source: str, target: str, seed: int, output: Path, recipe: Path = BUNDLED_RECIPE, detail: bool = False
    ) -> Demo:
        """A demo, checked; what it is about goes into the recipe over what is there.

        Raises:
            UserError: if a caption is not of the world of shapes, both say the same, or the recipe cannot be read or
                has a source of its own.
        """
        capture = Capture.of(source, seed=seed, detail=detail)
        target = parse_caption(target).caption
        if target == capture.caption:
            raise UserError(f"source and target are both {target!r}: there is nothing to change")
        try:
            keys = yaml.safe_load(recipe.read_text("utf8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"the recipe {recipe} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(keys, dict):
            raise UserError(f"the recipe {recipe} has no keys")
        if "source_run" in keys:
            raise UserError(
                f"the recipe {recipe} has a source_run, but the demo reconstructs its own scene: leave it out, or run "
                f"`cds-nerf scene {recipe}`"
            )
        own = {
            "capture": str(output / "scene"),
            "source_prompt": capture.caption,
            "target_prompt": target,
            "output": str(output),
            "seed": seed,
        }
        return cls(capture, target, output, {"name": edit_name(target)} | keys | own)

    @property
    def scene(self) -> Path:
        """Folder of the capture."""
        return self.output / "scene"

    @property
    def source(self) -> Path:
        """Folder of the field's run, unedited."""
        return self.output / SOURCE_METHODS[self.recipe.get("field", "nerf")] / "run"

    @property
    def name(self) -> str:
        """Of the edit, for its folders."""
        return str(self.recipe["name"])

    def make_scene(self) -> None:
        """Write the capture and the ground truth of the edit, where they are not there."""
        write_capture(self.capture, self.scene)
        write_ground_truth(self.capture, self.target, self.scene)

    def follow_recipe(self) -> None:
        """Write the recipe and follow it, in a process of its own, as `cds-nerf scene` does.

        Raises:
            UserError: if that does not end well; it has said why.
        """
        path = self.output / "recipe.yaml"
        with whole_file(path) as file:
            file.write_text(yaml.safe_dump(dict(self.recipe), sort_keys=False, allow_unicode=True), "utf8")
        with subprocess.Popen([sys.executable, "-m", "cds_nerf.cli", "scene", str(path)]) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:  # which it gets as well, and saves what it has
                process.wait()
                raise
        if status:
            raise UserError(f"the demo stopped; the same command, or `cds-nerf scene {path}`, goes on from there")

    def report(self, classifier: AttributeClassifier) -> dict[str, SceneQuality]:
        """Write the contact sheet, the video and the numbers into `output/NAME`.

        Args:
            classifier: says what a view shows.

        Returns:
            The quality over all held-out views, before and after the edit.
        """
        folder, truth = self.output / self.name, self.scene / "edited" / edit_name(self.target)
        fields = {"before": self.output / "held_out" / "source", "after": self.output / "held_out" / self.name}
        files = sorted(path.name for path in fields["after"].glob("*.png"))
        true_views = read_views(truth / "images", files)
        edited = self.capture.scene().edited(parse_caption(self.target))
        poses = self.capture.poses()[[int(Path(name).stem) for name in files]]
        empty_views, _ = render(edited.without_object, poses, self.capture.size)
        plain_views = true_views  # a pattern must not be read from how the pictures were rounded
        if self.capture.detail:
            plain_views, _ = render(replace(edited, detail=None), poses, self.capture.size)
        words = [parse_caption(caption).words for caption in (self.capture.caption, self.target)]
        quality = {}
        for name, views in fields.items():
            images = read_views(views, files)
            of_views = quality_of_views(
                images,
                true_views,
                read_views(self.scene / "masks", files),
                read_views(truth / "masks", files),
                empty_views,
                plain_views,
                classifier.classify(images),
                *words,
            )
            quality[name] = scene_quality(of_views)
        with whole_file(folder / "quality.md") as file:
            file.write_text(quality_table(quality) + "\n", "utf8")
        with whole_file(folder / "quality.json") as file:
            file.write_text(json.dumps({name: asdict(row) for name, row in quality.items()}, indent=2) + "\n", "utf8")

        shown = files[:: max(len(files) // SHEET_VIEWS, 1)][:SHEET_VIEWS]
        rows = {
            f"before: {self.capture.caption}": fields["before"],
            f"after: {self.target}": fields["after"],
            "ground truth of the edit": truth / "images",
        }
        sheet = contact_sheet({label: [_open(views / file) for file in shown] for label, views in rows.items()})
        with whole_file(folder / "contact_sheet.png") as file:
            sheet.save(file, format="PNG")
        video = self.output / "cds" / self.name / "before_after.mp4"
        if video.exists():  # a recipe may have none
            with whole_file(folder / video.name) as file:
                shutil.copyfile(video, file)
        return quality


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def read_views(folder: Path, files: Sequence[str]) -> Float[Tensor, "views channels height width"]:
    """Pictures of a folder, in 0..1."""
    return torch.stack([to_tensor(_open(folder / file)) for file in files])
