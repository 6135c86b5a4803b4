"""What the contrastive loss sees: its value between views of the bundled world and what was changed in them.

    python benchmarks/contrastive_loss.py [--views 32]

A loss of the structure alone would not see a change of the colour.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import ATTRIBUTES, Scene
from cds_nerf.shapes.training.renders import SIZE, random_view


@dataclass
class ContrastiveLossBenchmark:
    """Measure the contrastive loss between true edits."""

    views: int = 32
    """Random views."""
    draws: int = 8
    """Timesteps and noises for each."""
    guidance_scale: float = 3.0
    """Of the Delta Denoising Score beside it."""

    def run(self) -> None:
        """Print the mean loss for each kind of change, and the strength of both losses' gradients."""
        diffusion = LatentDiffusion.from_pretrained(prior_path())
        guidance = CDSGuidance(CDSGuidanceConfig(guidance_scale=self.guidance_scale), diffusion)
        draw = random.Random(0)
        found: dict[str, list[Tensor]] = {}
        for index in range(self.views):
            scene, pose = random_view(Scene.draw(draw), draw)
            changes = {"nothing": (scene, pose), "the camera": (scene, random_view(scene, draw)[1])} | {
                f"the {name}": (replace(scene, **{name: _another(getattr(scene, name), words, draw)}), pose)
                for name, words in ATTRIBUTES.items()
            }
            source = self._latents(diffusion, scene, pose)
            for name, (changed, changed_pose) in changes.items():
                target = self._latents(diffusion, changed, changed_pose).requires_grad_()
                out = guidance(
                    source,
                    target,
                    diffusion.encode_prompt(scene.caption),
                    diffusion.encode_prompt(changed.caption),
                    generator=torch.Generator().manual_seed(index),
                )
                gradients = [torch.autograd.grad(loss, target)[0] for loss in (out.cut_loss, out.dds_loss)]
                strengths = [gradient.flatten(1).norm(dim=1).mean() for gradient in gradients]
                found.setdefault(name, []).append(torch.stack([out.cut_loss.detach() / self.draws, *strengths]))
        print("| what differs | contrastive loss | its gradient | Delta Denoising Score's gradient |")
        print("| --- | ---: | ---: | ---: |")
        for name, rows in found.items():
            loss, cut, dds = torch.stack(rows).mean(dim=0).tolist()
            print(f"| {name} | {loss:.1f} | {cut:.2f} | {dds:.0f} |")

    @torch.no_grad()
    def _latents(self, diffusion: LatentDiffusion, scene: Scene, pose: Tensor) -> Tensor:
        """One view's latents, as often as there are draws."""
        return diffusion.encode(render(scene, pose, SIZE)[0]).repeat(self.draws, 1, 1, 1)


def _another(word: str, words: tuple[str, ...], draw: random.Random) -> str:
    return draw.choice([other for other in words if other != word])


if __name__ == "__main__":
    tyro.cli(ContrastiveLossBenchmark).run()
