"""How good the bundled prior is: reconstructions, samples and image edits, judged by the bundled classifier.

python benchmarks/prior_quality.py [--prior FOLDER] [--classifier FILE] [--pictures FOLDER]
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from cds_nerf import CDSGuidanceConfig, LatentDiffusion, edit_image
from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.classifier import WEIGHTS, AttributeClassifier
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import ATTRIBUTES, Scene, all_scenes
from cds_nerf.shapes.training.renders import SIZE, random_renders, random_view

HELD_OUT_SEED = 10**6
"""Far from the seeds of the training renders."""


@dataclass
class PriorQuality:
    """Measure the bundled prior."""

    prior: Path = field(default_factory=prior_path)
    """The diffusers folder."""
    classifier: Path = WEIGHTS
    """The judge's weights."""
    what: tuple[str, ...] = ("classifier", "autoencoder", "samples", "edits")
    """Which of the measurements."""
    seeds: int = 3
    """Of the samples: each gives one of every caption."""
    guidance_scale: float = 5.0
    """Of the samples."""
    edits: int = 50
    """Images edited in each attribute."""
    attributes: tuple[str, ...] = tuple(ATTRIBUTES)
    """What is edited."""
    edit_guidance_scale: float = 3.0
    """Of the image edits; greater ones exaggerate colours."""
    steps: int = 70
    """Of each image edit: as many as a floor needs."""
    learning_rate: float = 0.02
    """Of each image edit."""
    w_cut: tuple[float, ...] = (0.0, 15.0)
    """Weights of the contrastive loss to compare."""
    pictures: Path | None = None
    """Folder for pictures of all that is measured."""

    def run(self) -> None:
        """Measure and print."""
        self.judge = AttributeClassifier.from_pretrained(self.classifier)
        for name in self.what:
            getattr(self, f"measure_{name}")()

    def measure_classifier(self) -> None:
        """Accuracy on held-out renders."""
        renders = random_renders(1260, HELD_OUT_SEED)
        found = self.judge.classify(renders.images / 255)
        for index, (name, words) in enumerate(ATTRIBUTES.items()):
            right = [words.index(one[name]) == renders.words[i, index] for i, one in enumerate(found)]
            print(f"classifier, {name}: {torch.tensor(right).float().mean():.2%} of {len(right)} held-out renders")

    @torch.no_grad()
    def measure_autoencoder(self) -> None:
        """PSNR of reconstructions of held-out renders."""
        diffusion = LatentDiffusion.from_pretrained(self.prior)
        images = random_renders(504, HELD_OUT_SEED + 1).images / 255
        decoded = torch.cat([diffusion.decode(diffusion.encode(part)) for part in images.split(63)])
        fidelity = psnr(decoded, images)
        print(
            f"autoencoder: {fidelity.mean():.2f} dB, worst {fidelity.min():.2f} dB, of {len(images)} held-out renders"
        )
        self._save("reconstructions", torch.stack([images, decoded], dim=1)[:32].flatten(0, 1))

    def measure_samples(self) -> None:
        """How often samples show what their captions say."""
        pipeline = StableDiffusionPipeline.from_pretrained(
            self.prior, safety_checker=None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        scenes = list(all_scenes())
        right = torch.zeros(len(ATTRIBUTES) + 1)
        for seed in tqdm(range(self.seeds), "Samples", unit="seed"):
            images = pipeline(
                [scene.caption for scene in scenes],
                guidance_scale=self.guidance_scale,
                num_inference_steps=50,
                generator=[torch.Generator().manual_seed(1000 * seed + i) for i in range(len(scenes))],
                output_type="pt",
            ).images
            hits = _hits(self.judge, images, scenes)
            right += torch.stack([*hits.float().mean(dim=0), hits.all(dim=1).float().mean()]) / self.seeds
            self._save(f"samples-{seed}", images)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip([*ATTRIBUTES, "all"], right, strict=True))
        print(f"samples, guidance {self.guidance_scale}: {shares} right, of {self.seeds * len(scenes)}")

    def measure_edits(self) -> None:
        """How often edits of held-out renders show the target and keep the rest."""
        diffusion = LatentDiffusion.from_pretrained(self.prior)
        for w_cut in self.w_cut:
            config = CDSGuidanceConfig(w_cut=w_cut, guidance_scale=self.edit_guidance_scale)
            for name in self.attributes:
                sources, targets, images, masks = map(list, zip(*self._edit_cases(name), strict=True))
                edit = edit_image(
                    torch.stack(images),
                    [scene.caption for scene in sources],
                    [scene.caption for scene in targets],
                    diffusion,
                    config,
                    steps=self.steps,
                    learning_rate=self.learning_rate,
                )
                with torch.no_grad():
                    unedited = diffusion.decode(edit.source_latents)
                hits = _hits(self.judge, edit.image, targets)
                changed = list(ATTRIBUTES).index(name)
                kept = hits[:, [i for i in range(len(ATTRIBUTES)) if i != changed]]
                # The object's surroundings: not the pixels of its edge and its foot.
                covered = F.max_pool2d(torch.stack(masks), 5, stride=1, padding=2)
                fidelity = psnr(edit.image, unedited, outside(covered)).mean()
                print(
                    f"edits of {name}, w_cut {w_cut:g}: target {hits[:, changed].float().mean():.0%}, "
                    f"rest kept {kept.float().mean():.1%} (both words {kept.all(dim=1).float().mean():.0%}), "
                    f"outside {fidelity:.1f} dB",
                    flush=True,
                )
                self._save(
                    f"edits-{name}-{w_cut:g}", torch.stack([torch.stack(images), edit.image], 1)[:32].flatten(0, 1)
                )

    def _edit_cases(self, name: str) -> Iterator[tuple[Scene, Scene, Tensor, Tensor]]:
        """Source scene, target scene, the source's picture and the object's mask, in either scene."""
        draw = random.Random(HELD_OUT_SEED + 2)
        for _ in range(self.edits):
            scene, pose = random_view(Scene.draw(draw), draw)
            word = draw.choice([word for word in ATTRIBUTES[name] if word != getattr(scene, name)])
            target = Scene(**{attribute: getattr(scene, attribute) for attribute in ATTRIBUTES} | {name: word})
            image, mask = render(scene, pose, SIZE)
            _, target_mask = render(scene.edited(target), pose, SIZE)
            yield scene, target, image[0], torch.maximum(mask, target_mask)[0]

    def _save(self, name: str, images: Tensor) -> None:
        if self.pictures is not None:
            self.pictures.mkdir(parents=True, exist_ok=True)
            save_image(make_grid(F.interpolate(images, scale_factor=2.0), nrow=8), self.pictures / f"{name}.png")


def _hits(judge: AttributeClassifier, images: Tensor, scenes: list[Scene]) -> Tensor:
    """Whether each image [B] shows each attribute [A] of its scene."""
    found = judge.classify(images)
    return torch.tensor(
        [[one[name] == getattr(scene, name) for name in ATTRIBUTES] for one, scene in zip(found, scenes, strict=True)]
    )


if __name__ == "__main__":
    tyro.cli(PriorQuality).run()
