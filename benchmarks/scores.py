"""Which score keeps most at equal success: images and fields of the bundled world with detail, edited by each score.

    python benchmarks/scores.py [--quick] [--seeds 0 1 2] [--what images layers fields] [--output outputs/scores]

An edit of an image is measured on its way, so that every score gives a curve: how many images show the target, against
how much of the object's pattern and of its surroundings is kept. Every run is kept in a file of its own: the same
command goes on where it was interrupted. It writes benchmarks/RESULTS.md and its plots.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from compared_scores import LAYERS, QUICK, RUNS
from field_scores import FieldScores
from image_scores import ImageScores

from cds_nerf.files import whole_file

REGIONS = ("off", "on")


@dataclass
class ScoresBenchmark:
    """Compare the scores."""

    quick: bool = False
    """Four scores, one seed, images and colours alone."""
    what: tuple[Literal["images", "layers", "fields"], ...] = ("images", "layers", "fields")
    """Edits of images, which layers of the UNet take part in them, edits of fields."""
    attributes: tuple[Literal["color", "shape", "floor"], ...] = ("color", "shape", "floor")
    """What edits change."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws other scenes, views, timesteps and noise."""
    field: Literal["splats", "nerf"] = "splats"
    """Kind of the fields."""
    output: Path = Path("outputs/scores")
    """Folder for what was measured."""
    results: Path = Path(__file__).parent / "RESULTS.md"
    """Where the tables go; the plots beside it."""

    def run(self) -> None:
        """Run what is not there, and write the results."""
        if self.quick:
            self.seeds, self.attributes, self.what = self.seeds[:1], ("color",), ("images",)
        lines = [
            "# The scores side by side",
            "",
            f"`{shlex.join(['python', 'benchmarks/scores.py', *sys.argv[1:]])}`, commit {_commit()}, "
            f"{platform.machine()}, on a CPU, with the bundled model, in the bundled world with detail; seeds: "
            f"{', '.join(map(str, self.seeds))}. *Success*: a picture shows all of the target's words. *Outside*: the "
            "object's surroundings; where the floor is edited, the object. *Detail kept*: the pattern of the object, 1 "
            "for the truth and 0 for a plain one ([detail.py](../cds_nerf/evaluation/detail.py)). *Silhouette*: its "
            "overlap with the true one ([silhouette.py](../cds_nerf/evaluation/silhouette.py)). *Relative*: "
            "`--relative-w-cut`.",
        ]
        if "images" in self.what:
            lines += self._images()
        if "layers" in self.what:
            lines += self._layers()
        if "fields" in self.what:
            lines += self._fields()
        with whole_file(self.results) as file:
            file.write_text("\n".join(lines) + "\n", "utf8")
        print(f"wrote {self.results}")

    def _images(self) -> list[str]:
        images = ImageScores(output=self.output)
        lines = [
            "",
            "## Images",
            "",
            f"{images.count} for each seed, {images.steps} steps, in which the curves run from left to right. Outside "
            "is measured against the unedited image. The region is the object, or for a floor everything else. What an "
            "edit keeps it loses from step to step, so scores are compared at equal success: each image when it first "
            "shows its target.",
        ]
        for attribute in self.attributes:
            for region in REGIONS:
                plot = self.results.with_name(f"scores-{attribute}-region-{region}.png")
                table = images.section(attribute, region, QUICK if self.quick else tuple(RUNS), self.seeds, plot)
                lines += ["", f"### {attribute}, region {region}", "", *table]
        return lines

    def _layers(self) -> list[str]:
        plot = self.results.with_name("scores-layers.png")
        table = ImageScores(output=self.output).section("color", "off", tuple(LAYERS), self.seeds, plot)
        return [
            "",
            "## Which layers",
            "",
            "The same edits of colour with the region off: `cds` with `--relative-w-cut 0.3`, of which the "
            "self-attentions take part that are named, 0 the coarsest.",
            "",
            *table,
        ]

    def _fields(self) -> list[str]:
        fields = FieldScores(self.field, self.output)
        fields.prepare(self.attributes, REGIONS, QUICK, self.seeds)
        lines = [
            "",
            f"## Fields: {self.field}",
            "",
            "The demo's recipe but for the guidance, over the 12 held-out views of one scene for each seed; all is "
            "measured against the true edit: the mean over the scenes, ± their standard deviation. The region is the "
            "field's own, `auto`.",
        ]
        for attribute in self.attributes:
            for region in REGIONS:
                table = fields.section(attribute, region, QUICK, self.seeds)
                lines += ["", f"### {attribute}, region {region}", "", *table]
        return lines


def _commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    tyro.cli(ScoresBenchmark).run()
