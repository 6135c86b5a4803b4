"""What the contrastive losses see: how much they rise between views of the bundled world and what was changed in them.

    python benchmarks/contrastive_loss.py [--views 16]

A loss of the structure alone would not see a change of the colour, and would leave alone what has not changed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from compared_scores import RELATIONS, STRUCTURE
from torch import Tensor
from tqdm import tqdm

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import ATTRIBUTES, Detail, Scene
from cds_nerf.shapes.training.renders import SIZE, random_view

LOSSES: dict[str, dict[str, Any]] = {
    "patch_nce": {},
    "patch_nce, layers 1 2, target": STRUCTURE,
    "relations": {"contrastive_loss": "relations"},
    "relations, layers 1 2": RELATIONS,
}
"""Settings of `CDSGuidanceConfig`."""
SHIFT = 4
"""Pixels; a latent of the bundled model."""


@dataclass
class ContrastiveLossBenchmark:
    """Measure the contrastive losses between true edits."""

    views: int = 16
    """Random views."""
    draws: int = 8
    """Timesteps and noises for each."""

    def run(self) -> None:
        """Print how much each loss rises by each kind of change, and how strong its gradient is there."""
        diffusion = LatentDiffusion.from_pretrained(prior_path())
        guidances = {
            name: CDSGuidance(CDSGuidanceConfig(guidance_scale=3.0, **settings), diffusion)
            for name, settings in LOSSES.items()
        }
        draw = random.Random(0)
        found: dict[str, list[Tensor]] = {}
        for index in tqdm(range(self.views), unit="view"):
            scene, pose = random_view(Scene.draw(draw), draw)
            scene = replace(scene, detail=Detail.draw(draw))
            image = _view(scene, pose)
            changes = {
                "nothing": (scene, image),
                "its pattern is gone": (scene, _view(replace(scene, detail=None), pose)),
                f"it is shifted by {SHIFT} pixels": (scene, image.roll(SHIFT, dims=3)),
            } | {f"the {name}": _changed(scene, name, pose, draw) for name in ATTRIBUTES}
            source = self._latents(diffusion, image)
            for change, (changed, changed_image) in changes.items():
                target = self._latents(diffusion, changed_image).requires_grad_()
                texts = diffusion.encode_prompt(scene.caption), diffusion.encode_prompt(changed.caption)
                cells = []
                for guidance in guidances.values():
                    loss = guidance(source, target, *texts, generator=torch.Generator().manual_seed(index)).cut_loss
                    (gradient,) = torch.autograd.grad(loss, target)
                    cells += [loss.detach() / self.draws, gradient.flatten(1).norm(dim=1).mean()]
                found.setdefault(change, []).append(torch.stack(cells))
        means = {change: torch.stack(rows).mean(dim=0).view(-1, 2) for change, rows in found.items()}
        print(f"| what differs | {' | '.join(LOSSES)} |")
        print(f"| --- |{' ---: |' * len(LOSSES)}")
        for change, cells in means.items():
            rises = cells[:, 0] - means["nothing"][:, 0]
            shown = [f"{rise:+.2f} ({gradient:.3f})" for rise, gradient in zip(rises, cells[:, 1], strict=True)]
            print(f"| {change} | {' | '.join(shown)} |")

    @torch.no_grad()
    def _latents(self, diffusion: LatentDiffusion, image: Tensor) -> Tensor:
        """One view's latents, as often as there are draws."""
        return diffusion.encode(image).repeat(self.draws, 1, 1, 1)


def _view(scene: Scene, pose: Tensor) -> Tensor:
    return render(scene, pose, SIZE)[0]


def _changed(scene: Scene, name: str, pose: Tensor, draw: random.Random) -> tuple[Scene, Tensor]:
    """The scene with another word for an attribute, and a view of it."""
    others = [word for word in ATTRIBUTES[name] if word != getattr(scene, name)]
    changed = replace(scene, **{name: draw.choice(others)})
    return changed, _view(changed, pose)


if __name__ == "__main__":
    tyro.cli(ContrastiveLossBenchmark).run()
