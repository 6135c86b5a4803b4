"""Images of the bundled world with detail, edited by each score and measured on the way."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from compared_scores import LAYERS, RUNS, label_of
from edit_courses import Courses, plot_courses, table_of
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
EVERY = 2
"""Steps between measurements."""


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
        sources = [Scene.draw(draw) for _ in range(count)]
        targets = [
            replace(
                scene, **{attribute: draw.choice([w for w in ATTRIBUTES[attribute] if w != getattr(scene, attribute)])}
            )
            for scene in sources
        ]
        return cls.of(sources, targets, draw)

    @classmethod
    def of(cls, sources: Sequence[Scene], targets: Sequence[Scene], draw: random.Random) -> Cases:
        """These scenes with their targets' words, with detail and all else drawn, each from somewhere."""
        drawn, edited, pictures = [], [], []
        for source, words in zip(sources, targets, strict=True):
            scene, pose = random_view(source, draw)
            scene = replace(scene, detail=Detail.draw(draw))
            target = scene.edited(words)
            (image, mask), (truth, target_mask), (plain, _), (empty, _) = (
                render(one, pose, SIZE) for one in (scene, target, replace(target, detail=None), target.without_object)
            )
            drawn.append(scene)
            edited.append(target)
            pictures.append((image, truth, plain, empty, torch.maximum(mask, target_mask), target_mask))
        return cls(drawn, edited, *(torch.cat(column) for column in zip(*pictures, strict=True)))


@dataclass
class ImageScores:
    """Edits of images: what each score keeps at equal success."""

    count: int = 12
    """Images edited for each seed and attribute."""
    steps: int = 50
    """Of each edit."""
    output: Path = Path("outputs/scores")
    """Folder for what was measured."""
    judge: AttributeClassifier = field(init=False, default_factory=AttributeClassifier.from_pretrained)
    diffusion: LatentDiffusion = field(
        init=False, default_factory=lambda: LatentDiffusion.from_pretrained(prior_path())
    )

    def section(
        self, attribute: str, region: str, names: tuple[str, ...], seeds: tuple[int, ...], plot: Path
    ) -> list[str]:
        """The lines of a table, and its plot.

        Args:
            attribute: what the edits change, one of `ATTRIBUTES`.
            region: "off", or "on": the edit may act on the object alone, or for a floor on everything else.
            names: of the settings in `RUNS` or `LAYERS`.
            seeds: each draws other scenes, views, timesteps and noise.
            plot: where the curves go.
        """
        found = {
            name: Courses.joined([self._measured(attribute, seed, name, region) for seed in seeds]) for name in names
        }
        plot_courses(found, plot)
        return [*table_of(found), "", f"![Curves]({plot.name})"]

    def _measured(self, attribute: str, seed: int, name: str, region: str) -> Courses:
        label = label_of(name)
        path = self.output / "images" / f"{attribute}-{seed}-{label}-region-{region}-{self.count}-{self.steps}.json"
        if not path.exists():
            print(path.stem, flush=True)
            cases = Cases.draw(attribute, seed, self.count)
            points = list(self._edit(cases, attribute, seed, (RUNS | LAYERS)[name], region))
            with whole_file(path) as file:
                file.write_text(json.dumps(points) + "\n", "utf8")
        return Courses.of(json.loads(path.read_text("utf8")))

    def _edit(
        self, cases: Cases, attribute: str, seed: int, settings: dict[str, Any], region: str
    ) -> Iterator[dict[str, list[float]]]:
        """What is measured of each image, at one step after another."""
        suited = dict(self.diffusion.settings.guidance.get(settings["score"], {}))
        if "relative_w_cut" in settings:
            suited.pop("w_cut", None)
        kept: list[tuple[int, Tensor]] = []

        def keep(step: DescentStep) -> None:
            if step.step % EVERY == 0 or step.step == self.steps:
                kept.append((step.step, step.latents.clone()))

        edit = edit_image(
            cases.images,
            [scene.caption for scene in cases.sources],
            [scene.caption for scene in cases.targets],
            self.diffusion,
            CDSGuidanceConfig(**(suited | settings)),
            steps=self.steps,
            seed=seed,
            mask=_region(cases, attribute)[:, 0] if region == "on" else None,
            callback=keep,
            progress=False,
        )
        kept_pixels = _to_keep(cases, attribute)
        with torch.no_grad():
            unedited = self.diffusion.decode(edit.source_latents)
            for step, latents in kept:
                image = self.diffusion.decode(latents)
                seen = self.judge.classify(image)
                measures = {
                    "psnr": psnr(image, cases.truth),
                    "outside": psnr(image, unedited, kept_pixels),
                    "silhouette": silhouette_overlap(image, cases.truth, cases.empty, cases.target_mask),
                    "detail": detail_kept(image, cases.truth, cases.plain, cases.target_mask),
                }
                yield {
                    "step": [step] * len(image),
                    "shows": [float(words == scene.words) for words, scene in zip(seen, cases.targets, strict=True)],
                } | {name: values.tolist() for name, values in measures.items()}


def _region(cases: Cases, attribute: str) -> Tensor:
    """Where the edit may act if the region is on: the object, or for a floor everything else."""
    covered = F.max_pool2d(cases.mask, 3, stride=1, padding=1)
    return (cases.mask < 1).float() if attribute == "floor" else covered


def _to_keep(cases: Cases, attribute: str) -> Tensor:
    """The pixels that the edit has no reason to touch: without the object's edge and foot, or for a floor within it."""
    if attribute == "floor":
        return -F.max_pool2d(-cases.mask, 3, stride=1, padding=1) == 1
    return outside(F.max_pool2d(cases.mask, 5, stride=1, padding=2))
