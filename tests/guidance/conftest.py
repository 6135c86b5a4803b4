"""Small models and inputs for the guidance's tests."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from tiny_stable_diffusion import make_pipeline

from cds_nerf import LatentDiffusion, TextEmbedding

MakeDiffusion = Callable[..., LatentDiffusion]


@pytest.fixture(scope="session")
def make_diffusion() -> MakeDiffusion:
    """Make a small random Stable Diffusion: `make_diffusion(prediction_type, dtype)`."""

    def make(prediction_type: str = "epsilon", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
        pipeline = make_pipeline(prediction_type)
        return LatentDiffusion(
            unet=pipeline.unet.to(dtype),
            scheduler=pipeline.scheduler,
            vae=pipeline.vae.to(dtype),
            text_encoder=pipeline.text_encoder.to(dtype),
            tokenizer=pipeline.tokenizer,
        )

    return make


@pytest.fixture
def diffusion(make_diffusion: MakeDiffusion) -> LatentDiffusion:
    return make_diffusion()


@pytest.fixture
def texts(diffusion: LatentDiffusion) -> tuple[TextEmbedding, TextEmbedding]:
    """The embeddings of a source and a target prompt."""
    return diffusion.encode_prompt("a fox"), diffusion.encode_prompt("a wolf")


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    """Source and target latents: a batch of two, not square, its sides odd after one halving."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(2, 4, 14, 10, generator=generator)
    return source, source + 0.5 * torch.randn(2, 4, 14, 10, generator=generator)
