"""Every word of an attribute turned into every other: which edits work, and which kinds do not.

    python benchmarks/edit_grid.py [--what images fields] [--attributes color] [--scenes 10] [--output outputs/grid]

In images each pair of words is edited in as many scenes, with the bundled model's own settings. Of fields there are as
many scenes, each reconstructed once and edited to every other word by the demo's recipe: what is done is kept. All
scenes have detail. An edit succeeds in a view that shows all of the target's words.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from demo_runs import Quality, demo_quality, mean_and_worst
from image_scores import Cases
from tqdm import tqdm

from cds_nerf import LatentDiffusion, edit_image
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.scene import ATTRIBUTES, Scene

Pair = tuple[str, str]
"""A word and what becomes of it."""


@dataclass
class EditGrid:
    """Edit every word of an attribute to every other."""

    what: tuple[Literal["images", "fields"], ...] = ("images",)
    """What is edited; a field's edit takes a hundred times as long."""
    attributes: tuple[Literal["color", "shape", "floor"], ...] = ("color",)
    """Whose words."""
    scenes: int = 10
    """For each pair of words in images; of fields in all."""
    field: Literal["splats", "nerf"] = "splats"
    """Kind of the fields."""
    others: int | None = None
    """Of fields: how many other words each scene is edited to; all of them if not given."""
    output: Path = Path("outputs/grid")
    """Folder for the fields."""

    def run(self) -> None:
        """Edit what is not there, and print tables."""
        for attribute in self.attributes:
            if "images" in self.what:
                print(f"\nimages, {attribute}: share that show the target, of {self.scenes} scenes for each pair\n")
                _print_grid(attribute, self._of_images(attribute))
        if "fields" in self.what:
            self._run_fields()

    def _of_images(self, attribute: str) -> dict[Pair, float]:
        judge = AttributeClassifier.from_pretrained()
        diffusion = LatentDiffusion.from_pretrained(prior_path())
        shares = {}
        words = ATTRIBUTES[attribute]
        pairs = [(source, target) for source in words for target in words if source != target]
        for source, target in tqdm(pairs, attribute, unit="pair"):
            draw = random.Random(f"grid/{attribute}/{source}/{target}")
            sources = [replace(Scene.draw(draw), **{attribute: source}) for _ in range(self.scenes)]
            cases = Cases.of(sources, [replace(scene, **{attribute: target}) for scene in sources], draw)
            edit = edit_image(
                cases.images,
                [scene.caption for scene in cases.sources],
                [scene.caption for scene in cases.targets],
                diffusion,
                progress=False,
            )
            seen = judge.classify(edit.image)
            right = [found == scene.words for found, scene in zip(seen, cases.targets, strict=True)]
            shares[source, target] = sum(right) / len(right)
        return shares

    def _run_fields(self) -> None:
        seeds = range(self.scenes)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            of_scenes = list(pool.map(self._of_scene, seeds))
        for attribute in self.attributes:
            found = [
                (pair, quality) for of_scene in of_scenes for (name, pair), quality in of_scene if name == attribute
            ]
            rows: dict[str, Callable[[Quality], float]] = {
                "shows the target": lambda quality: quality["after"]["with_target"],
                "PSNR above the unedited, dB": lambda quality: quality["after"]["psnr"] - quality["before"]["psnr"],
                "PSNR to the true edit, dB": lambda quality: quality["after"]["psnr"],
                "outside the object, dB": lambda quality: quality["after"]["psnr_outside"],
                "silhouette": lambda quality: quality["after"]["silhouette"],
                "detail kept": lambda quality: quality["after"]["detail"],
                "detail before": lambda quality: quality["before"]["detail"],
            }
            print(f"\n{self.field}, {attribute}: {len(found)} edits of {self.scenes} scenes, mean and worst\n")
            for heading, value in rows.items():
                form = ".0%" if heading == "shows the target" else ".2f"
                print(f"| {heading} | {mean_and_worst([value(quality) for _, quality in found], form)} |")
            print("\nevery edit: shows the target, PSNR before and after, outside, detail before and after\n")
            for (source, target), quality in found:
                before, after = quality["before"], quality["after"]
                print(
                    f"| {source} to {target} | {after['with_target']:.0%} | {before['psnr']:.1f} | {after['psnr']:.1f} "
                    f"| {after['psnr_outside']:.1f} | {before['detail']:.2f} | {after['detail']:.2f} |"
                )

    def _of_scene(self, seed: int) -> list[tuple[tuple[str, Pair], Quality]]:
        """All of a scene's edits, one after the other, since they share their source."""
        draw = random.Random(f"grid/{seed}")
        source, found = Scene.draw(draw), []
        for attribute, words in ATTRIBUTES.items():
            others = [word for word in words if word != getattr(source, attribute)]
            draw.shuffle(others)
            for word in others[: self.others] if attribute in self.attributes else ():
                target = replace(source, **{attribute: word})
                quality = demo_quality(
                    self.output, self.field, seed, target.caption, "grid", {}, source=source.caption, detail=True
                )
                found.append(((attribute, (getattr(source, attribute), word)), quality))
        return found


def _print_grid(attribute: str, shares: dict[Pair, float]) -> None:
    """A row for each word, a column for what it becomes."""
    words = ATTRIBUTES[attribute]
    print(f"| from | {' | '.join(f'to {word}' for word in words)} |\n| --- |{' ---: |' * len(words)}")
    for source in words:
        cells = [f"{shares[source, target]:.0%}" if (source, target) in shares else "" for target in words]
        print(f"| {source} | {' | '.join(cells)} |")
    print(f"\nall: {sum(shares.values()) / len(shares):.1%}")


if __name__ == "__main__":
    tyro.cli(EditGrid).run()
