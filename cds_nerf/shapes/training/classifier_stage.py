"""Trains the judge of samples and edits on renders, blurred, noisy and shifted in tone as samples and fields are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.scene import ATTRIBUTES
from cds_nerf.shapes.training.loop import Worker, train
from cds_nerf.shapes.training.renders import Renders

STEPS, BATCH, LEARNING_RATE = 2500, 64, 2e-3


class ClassifierObjective(nn.Module):
    """Cross-entropy of each attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = AttributeClassifier()

    def forward(self, images: Tensor, words: Tensor) -> dict[str, Tensor]:
        """The losses of images in 0..1 and the words' indices."""
        logits = self.classifier(images)
        return {name: F.cross_entropy(logits[name].float(), words[:, i]) for i, name in enumerate(ATTRIBUTES)}


def train_classifier(worker: Worker, renders: Renders) -> AttributeClassifier:
    """The trained classifier."""
    torch.manual_seed(worker.seed)
    objective = ClassifierObjective()

    def batch(step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(renders.images), (BATCH // worker.count,), generator=generator)
        return degrade(renders.images[chosen] / 255, generator), renders.words[chosen]

    train(worker, "attributes", objective, batch, STEPS, LEARNING_RATE)
    return objective.classifier.eval()


def degrade(images: Tensor, generator: Generator) -> Tensor:
    """Images [B,3,H,W] in 0..1, half of them blurred, all with some noise."""
    weight = torch.rand((len(images), 1, 1, 1), generator=generator)
    blurred = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    images = torch.where(weight < 0.5, images, torch.lerp(images, blurred, 2 * weight - 1))
    strength = 0.05 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)
