"""How good the demo's edits are over seeds, of splats and of a nerfacto: a colour and a shape.

    python benchmarks/demo_edits.py [--seeds 0 1 2] [--fields splats nerf] [--output outputs/demo_edits]

Each seed is another scene of the same caption. Everything is as `cds-nerf demo` does it by default; what is done is
kept. The table has the mean over the seeds, and the worst of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image
from torchvision.transforms.functional import to_tensor

from cds_nerf.evaluation.fidelity import psnr
from cds_nerf.shapes.dataset import edit_name

SOURCE = "a photo of a red cube on a wooden floor"


@dataclass
class DemoEditsBenchmark:
    """Run the demo for several seeds, targets and kinds of fields, one after the other."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the demo."""
    fields: tuple[str, ...] = ("splats", "nerf")
    """As in the demo's --field."""
    targets: tuple[str, ...] = (
        "a photo of a blue cube on a wooden floor",
        "a photo of a red sphere on a wooden floor",
    )
    """Captions of the edits."""
    output: Path = Path("outputs/demo_edits")
    """Folder for everything."""

    def run(self) -> None:
        """Run what is not there, and print a table."""
        self.output.mkdir(parents=True, exist_ok=True)
        for seed in self.seeds:
            for field in self.fields:
                for target in self.targets:
                    self._demo(field, seed, target)
        columns = ("edit", "field", "source", "PSNR to the true edit", "outside", "shows the target", "keeps the rest")
        print(f"| {' | '.join(columns)} |\n| --- | --- {'| ---: ' * 5}|")
        for target in self.targets:
            for field in self.fields:
                for when in ("before", "after"):
                    self._print_row(target, field, when)
        times = [float(path.read_text("utf8")) for path in self.output.glob("*.minutes")]
        if times:
            print(f"\nfrom the scene to the report: {min(times):.1f} to {max(times):.1f} minutes")

    def _demo(self, field: str, seed: int, target: str) -> None:
        folder = self._folder(field, seed)
        if (folder / edit_name(target) / "quality.json").exists():
            return
        is_new = not folder.exists()
        start = time.monotonic()
        words = ["--source", SOURCE, "--target", target, "--field", field, "--seed", str(seed)]
        with (self.output / f"{field}-{seed}-{edit_name(target)}.log").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "cds_nerf.cli", "demo", *words, "--output", str(folder)],
                env={"OMP_NUM_THREADS": "1"} | os.environ,
                stdout=log,
                stderr=log,
                check=True,
            )
        if is_new:  # a later target has its source already
            path = self.output / f"{field}-{seed}.minutes"
            path.write_text(f"{(time.monotonic() - start) / 60}", "utf8")

    def _print_row(self, target: str, field: str, when: str) -> None:
        found = [self._quality(field, seed, target)[when] for seed in self.seeds]
        sources = [_held_out_psnr(self._folder(field, seed)) for seed in self.seeds]
        cells = [_cell(sources, ".1f")] + [
            _cell([one[key] for one in found], form)
            for key, form in {"psnr": ".1f", "psnr_outside": ".1f", "with_target": ".0%", "kept": ".0%"}.items()
        ]
        name = target.removeprefix("a photo of ").removesuffix(" on a wooden floor")
        print(f"| {name} | {field}, {when} | {' | '.join(cells)} |")

    def _folder(self, field: str, seed: int) -> Path:
        return self.output / f"{field}-{seed}"

    def _quality(self, field: str, seed: int, target: str) -> dict[str, dict[str, float]]:
        return json.loads((self._folder(field, seed) / edit_name(target) / "quality.json").read_text("utf8"))


def _held_out_psnr(folder: Path) -> float:
    """Of the unedited field to the scene, over the views that it was not trained on."""
    pictures = sorted((folder / "held_out" / "source").glob("*.png"))
    places = [pictures, [folder / "scene" / "images" / picture.name for picture in pictures]]
    views, truth = (torch.stack([to_tensor(Image.open(path)) for path in paths]) for paths in places)
    return psnr(views, truth).mean().item()


def _cell(values: list[float], form: str) -> str:
    return f"{sum(values) / len(values):{form}} ({min(values):{form}})"


if __name__ == "__main__":
    tyro.cli(DemoEditsBenchmark).run()
