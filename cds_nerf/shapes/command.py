"""`cds-nerf make-scene`: a scene of the world of shapes as a capture; imports torch only when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cds_nerf.shapes.scene import parse_caption


@dataclass
class MakeScene:
    """Make a capture of a scene of the world of shapes, as nerfstudio reads it, and the ground truth of its edits.

    The output folder gets transforms.json, images/ and masks/ of the object; a quarter of the views is held out.
    edited/TARGET/ holds the same views of the edited scene.
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf make-scene "a red cube on a wooden floor" scene/
  cds-nerf make-scene "a red cube on a wooden floor" scene/ --target "a blue cube on a wooden floor"
  cds-nerf make-scene "a white cone on a gray floor" cone/ --views 100 --size 256 --seed 3"""

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

        capture, folder = Capture.of(self.caption, self.views, self.size, self.seed), self.output.expanduser()
        wrote = write_capture(capture, folder)
        print(f"wrote {folder}" if wrote else f"kept {folder}, which holds this scene already")
        for target in self.target:
            edited = folder / "edited" / edit_name(target)
            print(f"wrote {edited}" if write_ground_truth(capture, target, folder) else f"kept {edited}")
        return 0
