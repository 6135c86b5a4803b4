"""How good the demo's edits are over seeds, of a nerfacto and of splats: a colour and a shape, by CDS and by DDS.

    python benchmarks/demo_edits.py [--seeds 0 1 2] [--fields nerf splats] [--w-cuts 15 0] [--output outputs/demo_edits]

Each seed is another scene of the same caption. Everything is as `cds-nerf demo` does it by default, but for the weight
of the contrastive loss; what is done is kept. The table has the mean over the seeds, and the worst of them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from demo_runs import Quality, demo_folder, demo_quality, mean_and_worst
from PIL import Image
from torchvision.transforms.functional import to_tensor

from cds_nerf.evaluation.fidelity import psnr

COLUMNS = {
    "psnr": ("PSNR to the true edit, dB", ".1f"),
    "psnr_outside": ("outside the object, dB", ".1f"),
    "with_target": ("shows the target", ".0%"),
    "kept": ("keeps the rest", ".0%"),
    "silhouette": ("silhouette", ".2f"),
}
"""The measures of the table, with heading and form."""


@dataclass
class DemoEditsBenchmark:
    """Run the demo for several seeds, targets, kinds of fields and weights of the contrastive loss."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the demo."""
    fields: tuple[Literal["nerf", "splats"], ...] = ("nerf", "splats")
    """As in the demo's --field."""
    targets: tuple[str, ...] = (
        "a photo of a blue cube on a wooden floor",
        "a photo of a red sphere on a wooden floor",
    )
    """Captions of the edits."""
    w_cuts: tuple[float, ...] = (15.0, 0.0)
    """Weights of the contrastive loss: the demo's, and none, which is Delta Denoising Score."""
    output: Path = Path("outputs/demo_edits")
    """Folder for everything."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Demos that run at a time, one thread each."""

    def run(self) -> None:
        """Run what is not there, and print a table."""
        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(self._edits_of_a_scene, [(kind, seed) for kind in self.fields for seed in self.seeds]))
        print(f"| edit | field | {' | '.join(heading for heading, _ in COLUMNS.values())} |")
        print(f"| --- | --- |{' ---: |' * len(COLUMNS)}")
        for target in self.targets:
            for kind in self.fields:
                self._print_row(target, kind, "unedited", "before", self.w_cuts[0])
                for w_cut in self.w_cuts:
                    self._print_row(target, kind, f"`w_cut` {w_cut:g}", "after", w_cut)
        for kind in self.fields:
            sources = [_held_out_psnr(demo_folder(self.output, kind, seed)) for seed in self.seeds]
            print(f"\nthe unedited {kind} to the scene: {mean_and_worst(sources, '.1f')} dB")

    def _edits_of_a_scene(self, scene: tuple[str, int]) -> None:
        """All of a scene's edits, one after the other, since they share their source."""
        for w_cut in self.w_cuts:
            for target in self.targets:
                self._quality(*scene, target, w_cut)

    def _print_row(self, target: str, kind: str, name: str, when: str, w_cut: float) -> None:
        found = [self._quality(kind, seed, target, w_cut)[when] for seed in self.seeds]
        cells = [mean_and_worst([one[key] for one in found], form) for key, (_, form) in COLUMNS.items()]
        edit = target.removeprefix("a photo of ").removesuffix(" on a wooden floor")
        print(f"| {edit} | {kind}, {name} | {' | '.join(cells)} |")

    def _quality(self, kind: str, seed: int, target: str, w_cut: float) -> Quality:
        return demo_quality(self.output, kind, seed, target, f"w-cut-{w_cut:g}", {"pipeline.guidance.w-cut": w_cut})


def _held_out_psnr(folder: Path) -> float:
    """Of the unedited field to the scene, over the views that it was not trained on."""
    pictures = sorted((folder / "held_out" / "source").glob("*.png"))
    places = [pictures, [folder / "scene" / "images" / picture.name for picture in pictures]]
    views, truth = (torch.stack([to_tensor(Image.open(path)) for path in paths]) for paths in places)
    return psnr(views, truth).mean().item()


if __name__ == "__main__":
    tyro.cli(DemoEditsBenchmark).run()
