"""Random renders of the world, with what they show."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from cds_nerf.progress import progress_bar
from cds_nerf.shapes.render import look_at_pose, render
from cds_nerf.shapes.scene import ATTRIBUTES, Detail, Scene, all_scenes, vary

SIZE = 64
"""Side of the renders."""
ELEVATIONS = (math.radians(10), math.radians(50))
"""Of the cameras, from to, in radians."""
DETAILED = 0.75
"""Share of the scenes with a pattern and stones; the others are plain."""


@dataclass(frozen=True)
class Renders:
    """Renders of random scenes."""

    images: UInt8[Tensor, "renders 3 size size"]
    """The pictures."""
    words: Int[Tensor, "renders attributes"]
    """Indices into each of `ATTRIBUTES`."""


def random_view(scene: Scene, draw: random.Random) -> tuple[Scene, Tensor]:
    """The scene with all else drawn, and a pose [1,3,4] from which it is seen."""
    detail = Detail.draw(draw) if draw.random() < DETAILED else None
    return replace(vary(scene, draw), detail=detail), look_at_pose(
        draw.uniform(0, 2 * math.pi), draw.uniform(*ELEVATIONS)
    )[None]


def random_renders(count: int, seed: int, progress: bool = True) -> Renders:
    """As many renders, the 84 captions in turn.

    Args:
        count: how many.
        seed: of everything.
        progress: whether to show a progress bar.
    """
    draw = random.Random(seed)
    scenes = list(all_scenes())
    images, words = [], []
    for index in progress_bar(range(count), "Renders", unit="render", shown=progress):
        scene = scenes[index % len(scenes)]
        image, _ = render(*random_view(scene, draw), SIZE)
        images.append((image[0] * 255).round().byte())
        words.append([values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()])
    return Renders(torch.stack(images), torch.tensor(words))
