"""Where two prompts disagree: against the definition, written out sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cds_nerf import TextEmbedding
from cds_nerf.guidance.relevance import NOISE_LEVELS, PEAK_QUANTILE, RAMP, relevance_map


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_relevance_is_the_mean_difference_of_the_prompts_predictions(make_diffusion, latents, prediction_type) -> None:
    diffusion = make_diffusion(prediction_type)
    source_text, target_text = diffusion.encode_prompt("a fox"), diffusion.encode_prompt("a wolf")
    source = latents[0][:1]
    relevance = relevance_map(diffusion, source, source_text, target_text, torch.Generator().manual_seed(0))

    generator = torch.Generator().manual_seed(0)
    differences = []
    noises = torch.randn((len(NOISE_LEVELS), *source.shape[1:]), generator=generator)
    for level, noise in zip(NOISE_LEVELS, noises, strict=True):
        timestep = torch.tensor([round(level * 999)])
        alpha = diffusion.alphas_cumprod[timestep]
        noisy = alpha.sqrt() * source + (1 - alpha).sqrt() * noise
        with torch.no_grad():
            one, other = (
                diffusion.unet(noisy, timestep, text.conditional).sample for text in (source_text, target_text)
            )
        scale = alpha.sqrt() if prediction_type == "v_prediction" else 1.0
        differences.append(scale * (one - other).square().sum(dim=1, keepdim=True).sqrt())
    mean = F.avg_pool2d(torch.stack(differences).mean(dim=0), 3, stride=1, padding=1, count_include_pad=False)
    low, high = RAMP
    expected = ((mean / mean.quantile(PEAK_QUANTILE) - low) / (high - low)).clamp(0, 1)
    assert relevance.shape == (1, 1, 14, 10)
    assert torch.allclose(relevance, expected, atol=1e-4)
    assert 0 <= relevance.min() < relevance.max() == 1


def test_prompts_that_the_model_cannot_tell_apart_leave_all_of_the_image(diffusion, latents) -> None:
    text: TextEmbedding = diffusion.encode_prompt("a fox")
    relevance = relevance_map(diffusion, latents[0][:1], text, text, torch.Generator().manual_seed(0))
    assert torch.equal(relevance, torch.zeros(1, 1, 14, 10))
