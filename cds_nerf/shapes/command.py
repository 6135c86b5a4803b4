"""`cds-nerf make-scene` and `cds-nerf demo`; they import torch only when they run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from cds_nerf.errors import UserError
from cds_nerf.shapes.scene import parse_caption


@dataclass
class MakeScene:
    """Make a capture of a scene of the world of shapes, as nerfstudio reads it, and the ground truth of its edits.

    The output folder gets transforms.json, images/, masks/ of the object, and sparse_pc.ply, a point cloud for splats
    to begin from; a quarter of the views is held out.
    edited/TARGET/ holds the same views of the edited scene.
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf make-scene "a red cube on a wooden floor" scene/
  cds-nerf make-scene "a red cube on a wooden floor" scene/ --target "a blue cube on a wooden floor"
  cds-nerf make-scene "a white cone on a gray floor" cone/ --views 100 --size 256 --seed 3 --detail"""

    caption: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help_behavior_hint="")]
    """What there is to see: a colour, a shape and a floor."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help_behavior_hint="")]
    """Folder for the capture. One that holds the same scene is kept, and gets the targets that it lacks."""
    target: tuple[str, ...] = ()
    """Captions of edits; each gives the ground truth of one."""
    views: int = 48
    """Cameras, on an orbit all around at 10 to 50 degrees above the floor."""
    size: int = 64
    """Side of the square images in pixels."""
    seed: int = 0
    """Of what the caption does not say, such as light, sky and the object's size, and of the cameras."""
    detail: bool = False
    """A pattern on the object in another shade of its colour, and stones on the floor. No caption names them and every
    ground truth keeps them: something for an edit to keep."""

    def run(self) -> int:
        """Write what is not there.

        Returns:
            The exit status, 0.

        Raises:
            UserError: if a caption is not of the world of shapes, a number is too small, or the folder holds something
                else.
        """
        for target in self.target:
            parse_caption(target)
        from cds_nerf.shapes.dataset import Capture, edit_name, write_capture, write_ground_truth

        capture, folder = (
            Capture.of(self.caption, self.views, self.size, self.seed, self.detail),
            self.output.expanduser(),
        )
        wrote = write_capture(capture, folder)
        print(f"wrote {folder}" if wrote else f"kept {folder}, which holds this scene already")
        for target in self.target:
            edited = folder / "edited" / edit_name(target)
            print(f"wrote {edited}" if write_ground_truth(capture, target, folder) else f"kept {edited}")
        return 0


@dataclass
class RunDemo:
    """Edit a scene of the world of shapes from nothing, offline, and say how good the edit is.

    Makes a capture, reconstructs it, edits the field by text with the bundled diffusion model, and compares the result
    with the true edit. What is done is kept: the same command goes on where it was interrupted.
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf demo
  cds-nerf demo --field splats
  cds-nerf demo --target "a photo of a red sphere on a wooden floor"
  cds-nerf demo --source "a green cone on a gray floor" --target "an orange cone on a gray floor" \\
    --output outputs/cone"""

    source: str = "a photo of a red cube on a wooden floor"
    """Caption of the scene."""
    target: str = "a photo of a blue cube on a wooden floor"
    """Caption of what it is to become."""
    field: Literal["nerf", "splats"] = "nerf"
    """What the scene is reconstructed as: a nerfacto, or a splatfacto."""
    seed: int = 0
    """Of everything."""
    output: Path | None = None
    """Folder for all that is made; outputs/demo, or outputs/demo-splats. Several targets of one source and seed may
    share it."""
    detail: bool = False
    """A scene with a pattern on the object and stones on the floor, and how much of the pattern the edit keeps."""
    recipe: Path | None = None
    """A recipe with other settings than the demo's own; captions, seed and folders are the demo's."""

    def run(self) -> int:
        """Make the scene, follow the recipe, and report.

        Returns:
            The exit status, 0.

        Raises:
            UserError: if a setting cannot be used, before anything is started; or if a stage fails.
        """
        for caption in (self.source, self.target):
            parse_caption(caption)
        from cds_nerf.evaluation.scene_edit import quality_table
        from cds_nerf.shapes.classifier import AttributeClassifier

        if self.recipe is not None and self.field == "splats":
            raise UserError(f"--field is splats, but the recipe {self.recipe} says what its field is: leave one out")
        from cds_nerf.shapes.demo import BUNDLED_RECIPE, SPLAT_RECIPE, Demo

        start = time.monotonic()
        recipe = SPLAT_RECIPE if self.field == "splats" else BUNDLED_RECIPE
        recipe = recipe if self.recipe is None else self.recipe.expanduser()
        output = self.output or Path("outputs/demo-splats" if self.field == "splats" else "outputs/demo")
        demo = Demo.of(self.source, self.target, self.seed, output.expanduser(), recipe, self.detail)
        classifier = AttributeClassifier.from_pretrained()
        print(f"1/3 the scene, in {demo.scene}")
        demo.make_scene()
        print("2/3 its reconstruction and its edit")
        demo.follow_recipe()
        print("3/3 the report")
        quality = demo.report(classifier)
        report = demo.output / demo.name
        print(
            f"\n{demo.capture.caption} -> {demo.target}, over the held-out views:\n\n{quality_table(quality)}\n\n"
            f"contact sheet: {report / 'contact_sheet.png'}\n"
            f"video:         {report / 'before_after.mp4'}\n"
            f"before:        ns-viewer --load-config {demo.source / 'config.yml'}\n"
            f"after:         ns-viewer --load-config {demo.output / 'cds' / demo.name / 'config.yml'}\n"
            f"{(time.monotonic() - start) / 60:.1f} minutes"
        )
        return 0
