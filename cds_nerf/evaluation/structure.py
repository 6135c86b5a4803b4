"""How much of a picture's structure an edit kept, to the eye of a vision transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import ViTModel

from cds_nerf.evaluation.pretrained import from_cache_or_hub

DEFAULT_DINO = "facebook/dino-vitb8"
"""DINO's ViT-B/8, as in the evaluations of image editing that follow Splice."""
SIDE = 224
"""Pictures are brought to this shorter side, in pixels."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours that DINO was trained on (ImageNet's)."""


class StructureDistance:
    """The DINO structure distance (Splice, arXiv 2201.00424, equation 3), the CDS paper's measure of structure.

    S(I)_ij = cos(k_i, k_j) over the keys k of the last layer's self-attention, class token included; the distance
    of two pictures is the mean of (S(I) - S(J))^2.

    Args:
        model: a hub id or a folder of a DINO ViT; safetensors only.
        device: where it runs.

    Raises:
        UserError: if it cannot be had.
    """

    def __init__(self, model: str = DEFAULT_DINO, device: str | torch.device = "cpu") -> None:
        self.model = from_cache_or_hub(ViTModel, model).to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        keys = [
            module
            for name, module in self.model.named_modules()
            if name.endswith(("attention.k_proj", "attention.attention.key"))  # the latter before transformers 5
        ]
        self.last_keys = keys[-1]

    def __call__(
        self, before: Float[Tensor, "3 height width"], after: Float[Tensor, "3 height width"]
    ) -> Float[Tensor, ""]:
        """The distance of two pictures of one size, in 0..1; 0 for the same structure."""
        return (self._self_similarity(before) - self._self_similarity(after)).square().mean()

    @torch.no_grad()
    def _self_similarity(self, picture: Float[Tensor, "3 height width"]) -> Float[Tensor, "tokens tokens"]:
        patch = self.model.config.patch_size
        scale = SIDE / min(picture.shape[1:])
        size = [max(round(side * scale / patch), 1) * patch for side in picture.shape[1:]]
        pixels = F.interpolate(picture[None].to(self.device), size, mode="bicubic", antialias=True)
        mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        collected: list[Tensor] = []
        hook = self.last_keys.register_forward_hook(lambda _module, _inputs, output: collected.append(output))
        try:
            self.model(pixel_values=(pixels - mean) / deviation, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        keys = F.normalize(collected[0][0], dim=1)
        return keys @ keys.T
