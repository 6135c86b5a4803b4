"""How good the demo's edits of a scene are, over seeds, and what the contrastive loss adds to Delta Denoising Score.

    python benchmarks/scene_quality.py [--seeds 0 1 2] [--output outputs/scene_quality]

Each seed is another scene of the same caption. Everything is as in `cds-nerf demo`; what is done is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tyro
import yaml

from cds_nerf.diffusion.model_settings import ModelSettings
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.demo import BUNDLED_RECIPE

SOURCE = "a photo of a red cube on a wooden floor"


@dataclass
class SceneQualityBenchmark:
    """Run the demo for several seeds and edits, with the contrastive loss and without."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the demo."""
    targets: tuple[str, ...] = (
        "a photo of a blue cube on a wooden floor",
        "a photo of a red sphere on a wooden floor",
    )
    """Captions of the edits."""
    output: Path = Path("outputs/scene_quality")
    """Folder for everything."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Demos that run at a time, one thread each."""

    def run(self) -> None:
        """Run what is not there, and print a table."""
        self.output.mkdir(parents=True, exist_ok=True)
        recipe = yaml.safe_load(BUNDLED_RECIPE.read_text("utf8"))
        w_cut = ModelSettings.read(prior_path()).guidance["cds"]["w_cut"]
        losses = {f"CDS, w_cut {w_cut:g}": w_cut, "DDS, w_cut 0": 0}
        with ThreadPoolExecutor(self.processes) as pool:  # a seed's edits share its source: one after the other
            list(pool.map(lambda seed: list(self._demos(seed, recipe, losses.values())), self.seeds))
        print("| edit | | PSNR to the true edit | outside the object | shows the target | keeps the rest |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        for target in self.targets:
            rows = {"unedited": ("before", w_cut), **{name: ("after", weight) for name, weight in losses.items()}}
            for name, (when, weight) in rows.items():
                found = [self._quality(seed, target, weight)[when] for seed in self.seeds]
                cells = [
                    f"{sum(one[key] for one in found) / len(found):{form}} ({min(one[key] for one in found):{form}})"
                    for key, form in {"psnr": ".1f", "psnr_outside": ".1f", "with_target": ".0%", "kept": ".0%"}.items()
                ]
                print(f"| {target} | {name} | {' | '.join(cells)} |")

    def _demos(self, seed: int, recipe: dict, weights: object) -> Iterator[None]:
        for weight in weights:  # type: ignore[attr-defined]
            for target in self.targets:
                folder = self._folder(seed, target, weight)
                if not (folder / "quality.json").exists():
                    own = self.output / f"{seed}-{folder.name}.yaml"
                    edit = recipe["edit"] | {"pipeline.guidance.w-cut": weight}
                    own.write_text(yaml.safe_dump(recipe | {"name": folder.name, "edit": edit}), "utf8")
                    with own.with_suffix(".log").open("w") as log:
                        subprocess.run(
                            [
                                *(sys.executable, "-m", "cds_nerf.cli", "demo", "--source", SOURCE, "--target", target),
                                *("--seed", str(seed), "--output", str(folder.parent), "--recipe", str(own)),
                            ],
                            env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stdout=log,
                            stderr=log,
                            check=True,
                        )
                yield

    def _folder(self, seed: int, target: str, weight: float) -> Path:
        name = f"{target.removeprefix('a photo of ').replace(' ', '-')}-w-cut-{weight:g}"
        return self.output / f"seed-{seed}" / name

    def _quality(self, seed: int, target: str, weight: float) -> dict[str, dict[str, float]]:
        return json.loads((self._folder(seed, target, weight) / "quality.json").read_text("utf8"))


if __name__ == "__main__":
    tyro.cli(SceneQualityBenchmark).run()
