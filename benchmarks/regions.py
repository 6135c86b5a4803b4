"""What each kind of region keeps of the surroundings: the demo's colour edit, its region made in every way.

    python benchmarks/regions.py [--seeds 0 1 2] [--fields splats nerf] [--w-keep 3] [--output outputs/regions]

Each seed is another scene of the same caption. Everything is as `cds-nerf demo` does it, but for the region; what is
done is kept. The table has the mean over the seeds, and the worst of them. A region is measured for each latent, of
four pixels in this world: what is lost further from the object than that is no matter of where its edge runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from demo_runs import Quality, demo_folder, demo_quality, mean_and_worst
from viser.transforms import SO3

from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.nerf.region import OF_KINDS
from cds_nerf.shapes.dataset import Capture, edit_name
from cds_nerf.shapes.demo import read_views

TARGET = "a photo of a blue cube on a wooden floor"
LATENT_PIXELS = 4
"""Of the bundled diffusion model."""


@dataclass
class RegionsBenchmark:
    """Run the demo's colour edit with every kind of region."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the demo."""
    fields: tuple[Literal["nerf", "splats"], ...] = ("splats", "nerf")
    """As in the demo's --field."""
    kinds: tuple[str, ...] = ("auto", "text", "masks", "box", "none")
    """Of regions, in the table's order."""
    w_keep: float | None = None
    """Weight of the keep loss, by default the demo's."""
    ramp: tuple[float, float] | None = None
    """Of auto and text, by default the demo's."""
    follow_edges: bool | None = None
    """Whether auto, text and box end at the edges that views show, by default the demo's."""
    output: Path = Path("outputs/regions")
    """Folder for everything."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Demos that run at a time, one thread each."""

    def run(self) -> None:
        """Run what is not there, and print a table."""
        scenes = [(kind, seed) for kind in self.fields for seed in self.seeds]
        with ThreadPoolExecutor(self.processes) as pool:
            found = dict(zip(scenes, pool.map(lambda scene: dict(self._edits(*scene)), scenes), strict=True))
        print(
            "| field | region | outside, dB | lost of the unedited, dB | lost further than a latent from the object, "
            "dB | PSNR to the true edit, dB | shows the target |"
        )
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for kind in self.fields:
            for region in self.kinds:
                edits = [found[kind, seed][region] for seed in self.seeds]
                after = [edit["after"] for edit in edits]
                lost = [edit["before"]["psnr_outside"] - edit["after"]["psnr_outside"] for edit in edits]
                cells = [
                    mean_and_worst([one["psnr_outside"] for one in after], ".1f", min),
                    mean_and_worst(lost, ".1f", max),
                    mean_and_worst([self._lost_further(kind, seed, region) for seed in self.seeds], ".1f", max),
                    mean_and_worst([one["psnr"] for one in after], ".1f", min),
                    mean_and_worst([one["with_target"] for one in after], ".0%", min),
                ]
                print(f"| {kind} | {region} | {' | '.join(cells)} |")

    def _edits(self, kind: str, seed: int) -> Iterator[tuple[str, Quality]]:
        """Of one scene, one after the other, since they share their source; the first reconstructs it."""
        folder = demo_folder(self.output, kind, seed)
        for region in self.kinds:
            settings: dict[str, Any] = {} if self.w_keep is None else {"pipeline.w-keep": self.w_keep}
            if region != "auto":
                settings |= {"pipeline.region.kind": region, **self._settings(region, folder)}
            own = {"ramp": None if self.ramp is None else list(self.ramp), "follow_edges": self.follow_edges}
            for name, value in own.items():
                if region not in OF_KINDS[name]:
                    settings[f"pipeline.region.{name.replace('_', '-')}"] = None  # whatever the demo has
                elif value is not None:
                    settings[f"pipeline.region.{name.replace('_', '-')}"] = value
            yield region, demo_quality(self.output, kind, seed, TARGET, self._label(region), settings)

    def _label(self, region: str) -> str:
        keep = "" if self.w_keep is None else f"-keep-{self.w_keep:g}"
        ramp = "" if self.ramp is None else f"-ramp-{self.ramp[0]:g}-{self.ramp[1]:g}"
        edges = {None: "", True: "-edges", False: "-no-edges"}[self.follow_edges]
        return (
            region
            + keep
            + (ramp if region in OF_KINDS["ramp"] else "")
            + (edges if region in OF_KINDS["follow_edges"] else "")
        )

    def _lost_further(self, kind: str, seed: int, region: str) -> float:
        """How much is lost of the unedited field's PSNR to the true edit, in dB, further than a latent from objects."""
        folder, edit = demo_folder(self.output, kind, seed), edit_name(TARGET)
        truth = folder / "scene" / "edited" / edit
        names = sorted(path.name for path in (folder / "held_out" / "source").glob("*.png"))
        true_views = read_views(truth / "images", names)
        masks = torch.maximum(read_views(folder / "scene" / "masks", names), read_views(truth / "masks", names))[:, :1]
        further = outside(F.max_pool2d(masks, 2 * LATENT_PIXELS + 1, stride=1, padding=LATENT_PIXELS))
        before, after = (
            psnr(read_views(folder / "held_out" / name, names), true_views, further).mean().item()
            for name in ("source", f"{edit}-{self._label(region)}")
        )
        return before - after

    def _settings(self, region: str, folder: Path) -> dict[str, Any]:
        if region == "text":
            return {"pipeline.region.text": "a red cube"}
        if region == "masks":
            return {"pipeline.region.masks": str((folder / "scene" / "masks").resolve())}
        return _box(folder) if region == "box" else {}


def _box(folder: Path) -> dict[str, Any]:
    """A box a tenth larger than the cube, in the coordinates of the reconstruction."""
    capture = Capture(**json.loads((folder / "scene" / "scene.json").read_text("utf8")))
    scene = capture.scene()
    (path,) = folder.glob("*/run/dataparser_transforms.json")
    transforms = json.loads(path.read_text("utf8"))
    to_field = torch.tensor(transforms["transform"])
    half = 0.47 * scene.size
    center = transforms["scale"] * (to_field[:, :3] @ torch.tensor([0.0, 0.0, half]) + to_field[:, 3])
    turn = SO3.from_matrix(to_field[:, :3].numpy()) @ SO3.from_z_radians(scene.heading)
    angles = turn.as_rpy_radians()
    return {
        "pipeline.region.box-center": center.tolist(),
        "pipeline.region.box-rotation": [float(angles.roll), float(angles.pitch), float(angles.yaw)],
        "pipeline.region.box-scale": [2.2 * half * transforms["scale"]] * 3,
    }


if __name__ == "__main__":
    tyro.cli(RegionsBenchmark).run()
