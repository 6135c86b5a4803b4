"""Tells an image's colour, shape and floor: the judge of samples and edits in the world of shapes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_model
from torch import Tensor, nn

from cds_nerf.shapes.scene import ATTRIBUTES

SIZE = 64
"""Images are brought to this side first."""
WEIGHTS = Path(__file__).parent / "classifier.safetensors"
"""The bundled weights, made by `train_prior`."""


class AttributeClassifier(nn.Module):
    """A small convolutional network with one head for each attribute of a scene."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                    nn.GroupNorm(8, outputs),
                    nn.SiLU(),
                    nn.Conv2d(outputs, outputs, 3, padding=1),
                    nn.GroupNorm(8, outputs),
                    nn.SiLU(),
                )
                for inputs, outputs in pairwise(widths)
            ),
            nn.Flatten(),
            nn.Linear(widths[-1] * (SIZE // 16) ** 2, 128),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in ATTRIBUTES.items()})

    @classmethod
    def from_pretrained(cls, path: Path = WEIGHTS) -> AttributeClassifier:
        """The bundled classifier, in evaluation mode."""
        classifier = cls()
        load_model(classifier, path)
        return classifier.float().eval().requires_grad_(False)  # they are kept in half precision

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Float[Tensor, "batch words"]]:
        """Logits over the words of each attribute.

        Args:
            images: in 0..1, of any size.
        """
        if images.shape[-2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        features = self.body(images * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def classify(self, images: Float[Tensor, "batch 3 height width"]) -> list[dict[str, str]]:
        """The word of each attribute for each image, such as {"color": "red", "shape": "cube", "floor": "gray"}."""
        choices = {name: logits.argmax(dim=1).tolist() for name, logits in self(images).items()}
        return [{name: ATTRIBUTES[name][choices[name][i]] for name in ATTRIBUTES} for i in range(len(images))]
