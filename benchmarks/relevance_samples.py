"""How few UNet samples of a view tell where an edit may act: regions in the bundled world against those of 16 samples.

    python benchmarks/relevance_samples.py

Each noise is two samples, one for each prompt. Ten views of a true scene say where the prompts disagree, and what they
say is gathered in three dimensions as an edit does it, with the true distances. Compared are the maps of single views
and the gathered regions, where they are greater than a half, by their intersection over union; and the regions with the
object: how much of it is in them, and how much else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
import torch.nn.functional as F
import tyro
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from cds_nerf import LatentDiffusion, TextEmbedding
from cds_nerf.fields.gathering import SeenMap, gather
from cds_nerf.guidance import relevance
from cds_nerf.nerf.pipeline import NEAREST_TO_EDIT
from cds_nerf.nerf.region import PEAK_QUANTILE, RegionConfig
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.render import ORBIT_DISTANCE, _intersect, _to_floor, focal_length, render
from cds_nerf.shapes.scene import ATTRIBUTES, Scene, all_scenes
from cds_nerf.shapes.training.renders import SIZE, random_view

VIEWS = 10
"""As have a say before an edit's first step."""
NOISES = {
    "0.5": (0.5,),
    "0.3, 0.7": (0.3, 0.7),
    "0.3, 0.5, 0.7": (0.3, 0.5, 0.7),
    "0.2, 0.4, 0.6, 0.8": (0.2, 0.4, 0.6, 0.8),
    "the same twice": 2 * (0.2, 0.4, 0.6, 0.8),
}
"""Levels of noise, as fractions of the training timesteps; the last are what is compared with, under other noises."""


@dataclass
class RelevanceSamples:
    """Compare regions that are made of fewer samples with those of 16."""

    scenes: int = 12
    """How many scenes; each has an edit of one attribute, in turn."""

    def run(self) -> None:
        """Print the table."""
        diffusion = LatentDiffusion.from_pretrained(prior_path())
        draw = random.Random(0)
        found: dict[str, list[list[float]]] = {name: [] for name in NOISES}
        for number in range(self.scenes):
            scene, target = an_edit(number, draw)
            texts = diffusion.encode_prompt(scene.caption), diffusion.encode_prompt(target.caption)
            views = Views(scene, draw, diffusion)
            maps, regions = views.regions(diffusion, texts, list(NOISES.values())[-1], seed=0)
            for name, levels in NOISES.items():
                own_maps, own_regions = views.regions(diffusion, texts, levels, seed=1)
                inside = [views.objects[own_regions].sum() / views.objects.sum()]
                outside = [(own_regions & (views.objects == 0)).sum() / (views.objects == 0).sum()]
                found[name].append([overlap(own_maps, maps), overlap(own_regions, regions), *inside, *outside])
        print(f"{self.scenes} edits, {VIEWS} views each\n")
        print("| samples | noise | a view's map: IoU | the region: IoU | of the object | of the rest |")
        print("| ---: | --- | ---: | ---: | ---: | ---: |")
        for name, values in found.items():
            maps, regions, inside, outside = torch.tensor(values).mean(dim=0).tolist()
            print(
                f"| {2 * len(NOISES[name])} | {name} | {maps:.2f} | {regions:.2f} | {inside:.0%} | {outside:.1%} |",
                flush=True,
            )


def an_edit(number: int, draw: random.Random) -> tuple[Scene, Scene]:
    """A scene, and the same with another value of one attribute."""
    attribute = list(ATTRIBUTES)[number % 2]  # the colour or the shape; a floor is everywhere
    scene = draw.choice(list(all_scenes()))
    others = [value for value in ATTRIBUTES[attribute] if value != getattr(scene, attribute)]
    return scene, replace(scene, **{attribute: draw.choice(others)})


class Views:
    """Views of a true scene, at the size of their latents but for what is encoded."""

    def __init__(self, scene: Scene, draw: random.Random, diffusion: LatentDiffusion) -> None:
        scene, _ = random_view(scene, draw)
        poses = torch.cat([random_view(scene, draw)[1] for _ in range(VIEWS)])
        images, covered = render(scene, poses, SIZE)
        self.latents = diffusion.encode(images).detach()
        side = self.latents.shape[-1]
        self.objects = (F.interpolate(covered, (side, side), mode="area")[:, 0] > 0.5).float()
        focal = focal_length(side)
        self.cameras = Cameras(poses, fx=focal, fy=focal, cx=side / 2, cy=side / 2, width=side, height=side)
        rays = [self.cameras.generate_rays(index, keep_shape=True) for index in range(VIEWS)]
        flat = [(ray.origins.reshape(-1, 3), ray.directions.reshape(-1, 3)) for ray in rays]
        self.distances = [
            torch.minimum(_intersect(scene, *ray)[0], _to_floor(*ray)).reshape(side, side) for ray in flat
        ]

    def regions(
        self,
        diffusion: LatentDiffusion,
        texts: tuple[TextEmbedding, TextEmbedding],
        levels: tuple[float, ...],
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """What each view says, and where the edit may act [views,h,w], as flags."""
        with patch.object(relevance, "NOISE_LEVELS", levels):
            maps = [
                relevance.relevance_map(
                    diffusion, latents[None], *texts, torch.Generator().manual_seed(VIEWS * seed + index)
                )[0, 0]
                for index, latents in enumerate(self.latents)
            ]
        cameras = [self.cameras[index : index + 1] for index in range(VIEWS)]
        seen = [SeenMap(*one) for one in zip(cameras, self.distances, maps, strict=True)]
        nearest = NEAREST_TO_EDIT * ORBIT_DISTANCE
        gathered = torch.stack([gather(view.camera, view.distance, seen, nearest) for view in seen])
        low, high = RegionConfig().ramp
        threshold = (low + high) / 2 * gathered.flatten().quantile(PEAK_QUANTILE)
        return torch.stack(maps) > 0.5, gathered > threshold


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


if __name__ == "__main__":
    tyro.cli(RelevanceSamples).run()
