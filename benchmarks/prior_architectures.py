"""Stable Diffusion 1.5, 2.1 and XL base by their published configurations, with no weights.

Made under `FakeTensorMode` they take no memory, and whatever runs on them computes nothing: shapes and bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cds_nerf import LatentDiffusion, TextEmbedding

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPENCLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
OPENCLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
"""Of `AutoencoderKL`, in all of them."""
TOKENS = 77


@dataclass(frozen=True)
class Architecture:
    """What a kind of Stable Diffusion is made of."""

    name: str
    unet: dict[str, Any]
    """Of `UNet2DConditionModel`, where it differs from Stable Diffusion 1.5's."""
    text_encoders: tuple[dict[str, Any], ...]
    """Of `CLIPTextModel`."""
    vae_dtype: torch.dtype = torch.float16
    """Of a model that is loaded in float16."""
    prediction_type: str = "epsilon"
    sizes: tuple[int, ...] = (256, 512, 768)
    """Sides of the views, in pixels, that are asked about."""

    def make(self) -> tuple[LatentDiffusion, int]:
        """The model in float16 without its text encoders, and how many parameters these have."""
        defaults = {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        }
        with default_dtype(torch.float16):
            unet = UNet2DConditionModel(**defaults | self.unet)
        with default_dtype(self.vae_dtype):
            vae = AutoencoderKL(**AUTOENCODER, sample_size=512)
        text_parameters = 0
        for config in self.text_encoders:
            kind = CLIPTextModelWithProjection if "projection_dim" in config else CLIPTextModel
            text_parameters += parameters(kind(CLIPTextConfig(**config)))
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=self.prediction_type
        )
        return LatentDiffusion(unet, scheduler, vae), text_parameters

    def text(self) -> TextEmbedding:
        """What a prompt's embedding is like."""
        channels = self.unet.get("cross_attention_dim", 768)
        pooled = [None, None]
        if "addition_embed_type" in self.unet:
            pooled = [torch.randn(1, 1280) for _ in range(2)]
        return TextEmbedding(*(torch.randn(1, TOKENS, channels) for _ in range(2)), *pooled)


def parameters(module: nn.Module) -> int:
    """How many numbers a module has learnt."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within, modules are made in a precision: fake ones cannot change it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


ARCHITECTURES = (
    Architecture("SD 1.5", {}, (CLIP_L,)),
    Architecture(
        "SD 2.1",
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        (OPENCLIP_H,),
        prediction_type="v_prediction",
    ),
    Architecture(
        "SDXL",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (CLIP_L, OPENCLIP_G),
        vae_dtype=torch.float32,  # it overflows in float16, and is loaded so
        sizes=(256, 512, 768, 1024),
    ),
)
