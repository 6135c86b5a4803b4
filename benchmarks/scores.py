"""Which score keeps most at equal success: images of the bundled world with detail, edited by each score.

    python benchmarks/scores.py [--quick] [--seeds 0 1 2] [--output outputs/scores]

An edit is measured on its way, so that every score gives a curve: how many images show the target, against how much of
the object's pattern and of its surroundings is kept. Every run is kept in a file of its own: the same command goes on
where it was interrupted. It writes benchmarks/RESULTS.md and its plots.
"""

from __future__ import annotations

import json
import platform
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from cds_nerf import CDSGuidanceConfig, LatentDiffusion, edit_image
from cds_nerf.evaluation.detail import detail_kept
from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.evaluation.silhouette import silhouette_overlap
from cds_nerf.files import whole_file
from cds_nerf.image.latent_descent import DescentStep
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import ATTRIBUTES, Detail, Scene
from cds_nerf.shapes.training.renders import SIZE, random_view

HELD_OUT_SEED = 3 * 10**6
"""Far from the seeds of the prior's training renders."""
STRUCTURE = {"contrastive_layers": (1, 2), "contrastive_query": "target"}
"""The layers of the bundled UNet that tell structure from colour best, and the paper's query."""
RUNS: dict[str, dict[str, Any]] = {
    "dds": {"score": "dds"},
    "cds, w_cut 15": {"score": "cds"},
    "cds, relative 0.3": {"score": "cds", "relative_w_cut": 0.3},
    "cds, relative 1": {"score": "cds", "relative_w_cut": 1.0},
    "cds, relative 0.3, layers 1 2, target": {"score": "cds", "relative_w_cut": 0.3, **STRUCTURE},
    "cds, relative 1, layers 1 2, target": {"score": "cds", "relative_w_cut": 1.0, **STRUCTURE},
    "dds, decreasing": {"score": "dds", "timestep_schedule": "decreasing"},
    "cds, relative 0.3, decreasing": {"score": "cds", "relative_w_cut": 0.3, "timestep_schedule": "decreasing"},
    "sds": {"score": "sds"},
    "sds, relative 0.3": {"score": "sds", "relative_w_cut": 0.3},
    "pds": {"score": "pds"},
    "pds, relative 0.3": {"score": "pds", "relative_w_cut": 0.3},
    "ids": {"score": "ids"},
    "ids, relative 0.3": {"score": "ids", "relative_w_cut": 0.3},
}
"""What is compared: settings of `CDSGuidanceConfig`, over those that suit the model and the score's paper's own."""
QUICK = ("dds", "cds, w_cut 15", "cds, relative 0.3", "cds, relative 0.3, layers 1 2, target")
"""What the quick mode compares."""
MEASURES = {
    "psnr": "PSNR to the true edit, dB",
    "outside": "outside, dB",
    "silhouette": "silhouette",
    "detail": "detail kept",
}
"""What is measured beside success, with its heading."""


@dataclass(frozen=True)
class Cases:
    """Images to edit, and their true edits."""

    sources: list[Scene]
    """What they show."""
    targets: list[Scene]
    """What they are to show."""
    images: Tensor
    """[N,3,H,W] in 0..1."""
    truth: Tensor
    """[N,3,H,W]: the true edits."""
    plain: Tensor
    """[N,3,H,W]: the true edits without a pattern."""
    empty: Tensor
    """[N,3,H,W]: the true edits without the object."""
    mask: Tensor
    """[N,1,H,W] in 0..1: the objects before and after."""
    target_mask: Tensor
    """[N,1,H,W] in 0..1: the objects after."""

    @classmethod
    def draw(cls, attribute: str, seed: int, count: int) -> Cases:
        """Random scenes with detail, and another word for one attribute of each."""
        draw = random.Random(f"{HELD_OUT_SEED}/{attribute}/{seed}")
        sources, targets, pictures = [], [], []
        for _ in range(count):
            scene, pose = random_view(Scene(*(draw.choice(words) for words in ATTRIBUTES.values())), draw)
            scene = replace(scene, detail=Detail.draw(draw))
            word = draw.choice([word for word in ATTRIBUTES[attribute] if word != getattr(scene, attribute)])
            target = replace(scene, **{attribute: word})
            (image, mask), (truth, target_mask), (plain, _), (empty, _) = (
                render(one, pose, SIZE) for one in (scene, target, replace(target, detail=None), target.without_object)
            )
            sources.append(scene)
            targets.append(target)
            pictures.append((image, truth, plain, empty, torch.maximum(mask, target_mask), target_mask))
        return cls(sources, targets, *(torch.cat(column) for column in zip(*pictures, strict=True)))


@dataclass
class ScoresBenchmark:
    """Compare the scores."""

    quick: bool = False
    """Four scores, one seed and colours alone."""
    attributes: tuple[Literal["color", "shape", "floor"], ...] = ("color", "shape", "floor")
    """What edits change."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws other scenes, views, timesteps and noise."""
    images: int = 12
    """Edited for each seed and attribute."""
    steps: int = 50
    """Of each edit."""
    every: int = 5
    """Steps between measurements."""
    output: Path = Path("outputs/scores")
    """Folder for what was measured."""
    results: Path = Path(__file__).parent / "RESULTS.md"
    """Where the tables go; the plots beside it."""

    def run(self) -> None:
        """Run what is not there, and write the results."""
        if self.quick:
            self.seeds, self.attributes = self.seeds[:1], ("color",)
        names = QUICK if self.quick else tuple(RUNS)
        self.judge = AttributeClassifier.from_pretrained()
        self.diffusion = LatentDiffusion.from_pretrained(prior_path())
        found: dict[tuple[str, str, str], list[list[dict[str, float]]]] = {}
        for attribute in self.attributes:
            for seed in self.seeds:
                for region in ("off", "on"):
                    for name in names:
                        curve = self._measured(attribute, seed, name, region)
                        found.setdefault((attribute, region, name), []).append(curve)
        self._write(found, names)

    def _measured(self, attribute: str, seed: int, name: str, region: str) -> list[dict[str, float]]:
        label = "".join(letter if letter.isalnum() else "-" for letter in name)
        path = self.output / f"{attribute}-{seed}-{label}-region-{region}-{self.images}-{self.steps}-{self.every}.json"
        if not path.exists():
            print(path.stem, flush=True)
            curve = list(self._edit(Cases.draw(attribute, seed, self.images), attribute, seed, RUNS[name], region))
            with whole_file(path) as file:
                file.write_text(json.dumps(curve, indent=1) + "\n", "utf8")
        return json.loads(path.read_text("utf8"))

    def _edit(
        self, cases: Cases, attribute: str, seed: int, settings: dict[str, Any], region: str
    ) -> Iterator[dict[str, float]]:
        suited = dict(self.diffusion.settings.guidance.get(settings["score"], {}))
        if "relative_w_cut" in settings:
            suited.pop("w_cut", None)
        kept: list[tuple[int, Tensor]] = []

        def keep(step: DescentStep) -> None:
            if step.step % self.every == 0:
                kept.append((step.step, step.latents.clone()))

        edit = edit_image(
            cases.images,
            [scene.caption for scene in cases.sources],
            [scene.caption for scene in cases.targets],
            self.diffusion,
            CDSGuidanceConfig(**(suited | settings)),
            steps=self.steps,
            seed=seed,
            mask=self._region(cases, attribute)[:, 0] if region == "on" else None,
            callback=keep,
            progress=False,
        )
        surroundings = outside(F.max_pool2d(cases.mask, 5, stride=1, padding=2))  # not its edge nor its foot
        with torch.no_grad():
            unedited = self.diffusion.decode(edit.source_latents)
            for step, latents in kept:
                image = self.diffusion.decode(latents)
                seen = self.judge.classify(image)
                right = [words == scene.words for words, scene in zip(seen, cases.targets, strict=True)]
                yield {
                    "step": step,
                    "success": sum(right) / len(right),
                    "psnr": psnr(image, cases.truth).mean().item(),
                    "outside": psnr(image, unedited, surroundings).nanmean().item(),
                    "silhouette": silhouette_overlap(image, cases.truth, cases.empty, cases.target_mask)
                    .nanmean()
                    .item(),
                    "detail": detail_kept(image, cases.truth, cases.plain, cases.target_mask).nanmean().item(),
                }

    def _region(self, cases: Cases, attribute: str) -> Tensor:
        """Where the edit may act if the region is on: the object, or for a floor everything else."""
        covered = F.max_pool2d(cases.mask, 3, stride=1, padding=1)
        return (cases.mask < 1).float() if attribute == "floor" else covered

    def _write(self, found: dict[Any, list[list[dict[str, float]]]], names: Any) -> None:
        words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(words, capture_output=True, text=True).stdout.strip()
        lines = [
            "# The scores side by side",
            "",
            f"`python benchmarks/scores.py{' --quick' if self.quick else ''}`, commit {commit}, {platform.machine()}, "
            f"on a CPU: {self.images} images of the bundled world with detail for each of the seeds "
            f"{', '.join(map(str, self.seeds))}, {self.steps} steps, with the bundled model. The mean over the seeds, "
            "± their standard deviation. *Success*: share of images that show all of the target's words. *Outside*: "
            "the object's surroundings against the unedited image. *Detail kept*: the pattern of the object, 1 for the "
            "truth and 0 for a plain one (`cds_nerf/evaluation/detail.py`). *Silhouette*: its overlap with the true "
            "one.",
        ]
        for attribute in self.attributes:
            for region in ("off", "on"):
                lines += ["", f"## {attribute}, region {region}", ""]
                lines += [f"| score | success | {' | '.join(MEASURES.values())} |", f"| --- |{' ---: |' * 5}"]
                for name in names:
                    ends = [curve[-1] for curve in found[attribute, region, name]]
                    cells = [_spread([100 * end["success"] for end in ends], ".0f") + " %"]
                    cells += [
                        _spread([end[key] for end in ends], ".1f" if key in ("psnr", "outside") else ".2f")
                        for key in MEASURES
                    ]
                    lines.append(f"| {name} | {' | '.join(cells)} |")
                picture = self.results.with_name(f"scores-{attribute}-region-{region}.png")
                self._plot({name: found[attribute, region, name] for name in names}, picture)
                lines += ["", f"![Curves]({picture.name})"]
        with whole_file(self.results) as file:
            file.write_text("\n".join(lines) + "\n", "utf8")
        print(f"wrote {self.results}")

    def _plot(self, curves: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
        figure, axes = plt.subplots(1, len(MEASURES), figsize=(18, 4.5), layout="constrained")
        for axis, (key, heading) in zip(axes, MEASURES.items(), strict=True):
            for name, seeds in curves.items():
                mean = {
                    what: torch.tensor([[point[what] for point in curve] for curve in seeds]).mean(dim=0)
                    for what in ("success", key)
                }
                axis.plot(100 * mean["success"], mean[key], "o-", markersize=3, label=name)
            axis.set(xlabel="success, %", ylabel=heading)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=90)
        plt.close(figure)


def _spread(values: list[float], form: str) -> str:
    numbers = torch.tensor(values)
    return f"{numbers.mean():{form}}" + (f" ± {numbers.std():{form}}" if len(values) > 1 else "")


if __name__ == "__main__":
    tyro.cli(ScoresBenchmark).run()
