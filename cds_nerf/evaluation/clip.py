"""What CLIP says of an edit: how well pictures fit their prompts, and whether they changed as the prompts did."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizerFast

from cds_nerf.evaluation.pretrained import from_cache_or_hub

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
"""As in the metrics script of Instruct-NeRF2NeRF."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained on (arXiv 2103.00020, its released code)."""


class CLIPFeatures:
    """Unit features of pictures and texts, in CLIP's shared space.

    Args:
        model: a hub id or a folder; safetensors only.
        device: where it runs.

    Raises:
        UserError: if it cannot be had.
    """

    def __init__(self, model: str = DEFAULT_CLIP, device: str | torch.device = "cpu") -> None:
        self.model = from_cache_or_hub(CLIPModel, model).to(device).eval().requires_grad_(False)
        self.tokenizer = from_cache_or_hub(CLIPTokenizerFast, model)
        self.device = torch.device(device)

    @torch.no_grad()
    def of_pictures(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
        """Unit features of pictures in 0..1, which are squashed to the model's square."""
        side = self.model.config.vision_config.image_size
        squares = F.interpolate(pictures.to(self.device), size=(side, side), mode="bicubic", align_corners=False)
        mean, deviation = (squares.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        pooled = self.model.vision_model(pixel_values=(squares - mean) / deviation).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def of_text(self, text: str) -> Float[Tensor, "1 channels"]:
        """The unit feature of a text, cut at the model's limit."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt").to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)


def text_similarity(
    pictures: Float[Tensor, "views channels"], text: Float[Tensor, "1 channels"]
) -> Float[Tensor, " views"]:
    """Cosine of each picture's feature and a text's, both of length 1: how well the text describes the picture."""
    return (pictures * text).sum(dim=1)


def directional_similarity(
    before: Float[Tensor, "views channels"],
    after: Float[Tensor, "views channels"],
    source_text: Float[Tensor, "1 channels"],
    target_text: Float[Tensor, "1 channels"],
) -> Float[Tensor, " views"]:
    """Cosine of what changed in a picture and what changed in the prompts (StyleGAN-NADA, arXiv 2108.00946).

    The differences are of unit features, as in the metrics script of Instruct-NeRF2NeRF (arXiv 2303.12789).
    """
    return F.cosine_similarity(after - before, target_text - source_text, dim=1)


def directional_consistency(
    before: Float[Tensor, "views channels"], after: Float[Tensor, "views channels"]
) -> Float[Tensor, " pairs"]:
    """Cosine of what changed in a view and in the one after it (Instruct-NeRF2NeRF, arXiv 2303.12789, section 4.2).

    1 where an edit means the same in successive views.
    """
    change = after - before
    return F.cosine_similarity(change[:-1], change[1:], dim=1)


def nearer_to_target(
    pictures: Float[Tensor, "views channels"],
    source_text: Float[Tensor, "1 channels"],
    target_text: Float[Tensor, "1 channels"],
) -> Float[Tensor, " views"]:
    """CLIP accuracy: 1 for each picture that the target prompt describes better than the source prompt, else 0."""
    return (text_similarity(pictures, target_text) > text_similarity(pictures, source_text)).float()
