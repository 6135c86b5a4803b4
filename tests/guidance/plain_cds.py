"""The Contrastive Denoising Score as plainly as it can be written: slow, two passes, nothing shared or saved.

Tests hold the shipped guidance to it, and `benchmarks/guidance_cost.py` measures what the shipped one saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor

from cds_nerf import CDSGuidanceConfig, LatentDiffusion, TextEmbedding

PatchNCE = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class ExplicitAttention:
    """An attention processor that writes out softmax(Q K^T) V, and keeps what self-attention gives where asked to."""

    def __init__(self, record: list[Tensor] | None = None) -> None:
        self.record = record

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for projected in (attention.to_q(hidden_states), attention.to_k(context), attention.to_v(context))
        )
        weights = (query @ key.transpose(2, 3) * attention.scale).softmax(dim=3)
        output = attention.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
        if self.record is not None and encoder_hidden_states is None:
            self.record.append(output)
        return output


@contextmanager
def explicit_attention(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Attention written out, everywhere; yields the up blocks' self-attention outputs [B,N,C] as they are computed."""
    record: list[Tensor] = []
    shipped = dict(unet.attn_processors)
    unet.set_attn_processor(
        {
            name: ExplicitAttention(record if name.startswith("up_blocks") and ".attn1." in name else None)
            for name in shipped
        }
    )
    try:
        yield record
    finally:
        unet.set_attn_processor(shipped)


def plain_patch_nce(query: Tensor, key: Tensor, positions: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy of one pair of feature maps [C,h,w]: each query patch among the key patches."""
    queries = query.flatten(1).T[positions]
    keys = key.flatten(1).T[positions]
    keys = torch.stack([patch / patch.norm() for patch in keys])
    losses = []
    for i, patch in enumerate(queries):
        similarities = keys @ (patch / patch.norm()) / temperature
        losses.append(-torch.log(similarities[i].exp() / similarities.exp().sum()))
    return torch.stack(losses).mean()


def plain_relations(source: Tensor, target: Tensor, positions: Tensor, temperature: float) -> Tensor:
    """The mean divergence of one pair of feature maps [C,h,w]: each patch's similarities to the others."""
    maps = [features.flatten(1).T[positions] for features in (source, target)]
    divergences = []
    for i in range(len(positions)):
        p, q = (
            torch.stack(
                [torch.cosine_similarity(patches[i], patches[j], dim=0) for j in range(len(positions)) if j != i]
            )
            .div(temperature)
            .softmax(dim=0)
            for patches in maps
        )
        divergences.append((p * (p / q).log()).sum())
    return torch.stack(divergences).mean()


def pooled(features: Tensor, latent_size: Sequence[int], patch_size: int) -> Tensor:
    """Self-attention features [N,C] as a map [C,h,w] of means over square patches; what does not fill one is left."""
    h, w = latent_size
    while h * w != len(features):
        h, w = -(-h // 2), -(-w // 2)
    rows, columns = h // patch_size, w // patch_size
    maps = features.T.unflatten(1, (h, w))[:, : rows * patch_size, : columns * patch_size]
    return maps.reshape(-1, rows, patch_size, columns, patch_size).mean(dim=(2, 4))


def plain_noise(diffusion: LatentDiffusion, noisy: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
    """The noise prediction of noisy latents, whatever the UNet predicts."""
    prediction = diffusion.unet(noisy.to(diffusion.dtype), timestep, embedding.to(diffusion.dtype)).sample
    prediction = prediction.to(noisy.dtype)
    if diffusion.prediction_type == "epsilon":
        return prediction
    alphas = [diffusion.alphas_cumprod[t].item() for t in timestep]
    return torch.stack([a**0.5 * v + (1 - a) ** 0.5 * z for a, v, z in zip(alphas, prediction, noisy, strict=True)])


def plain_cds(
    config: CDSGuidanceConfig,
    diffusion: LatentDiffusion,
    source_latents: Tensor,
    target_latents: Tensor,
    source_text: TextEmbedding,
    target_text: TextEmbedding,
    timestep: Tensor,
    noise: Tensor,
    generators: Sequence[Generator] | None = None,
    patch_nce: PatchNCE = plain_patch_nce,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the Delta Denoising Score and the contrastive loss (both unweighted), summed over the batch.

    One pass of four samples a view without gradient for the score, one of two with gradient for the contrastive loss.

    Args:
        generators: draw the patches, one for each item, where there are more than `config.n_patches`.
        patch_nce: the contrastive loss of one pair of feature maps.
    """
    batch, _, h, w = target_latents.shape
    s = config.guidance_scale
    alphas = [diffusion.alphas_cumprod[t].item() for t in timestep]

    def noisy(latents: Tensor) -> Tensor:
        return torch.stack([a**0.5 * z + (1 - a) ** 0.5 * e for a, z, e in zip(alphas, latents, noise, strict=True)])

    def predict(latents: list[Tensor], embeddings: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The noise of each prompt, and the features [N,C] of the last of them: a list of layers for each item."""
        embedding = torch.cat([e.expand(batch, -1, -1) for e in embeddings])
        with explicit_attention(diffusion.unet) as record:
            noises = plain_noise(diffusion, torch.cat(latents), timestep.repeat(len(latents)), embedding)
        features = [[layer[i].to(noise.dtype) for layer in record] for i in range(len(embedding))]
        return list(noises.split(batch)), features

    with torch.no_grad():
        z, y = noisy(source_latents), noisy(target_latents)
        (z_0, y_0, z_1, y_1), features = predict(
            [z, y, z, y],
            [source_text.unconditional, target_text.unconditional, source_text.conditional, target_text.conditional],
        )
        gradient = (y_0 + s * (y_1 - y_0)) - (z_0 + s * (z_1 - z_0))
    source_features = features[2 * batch : 3 * batch]
    y = noisy(target_latents)
    _, features = predict([y, y], [target_text.unconditional, target_text.conditional])
    target_features = features[batch:]

    dds_loss = 2000 * (target_latents * gradient).sum() / (h * w)
    cut_loss = torch.zeros(())
    for item in range(batch):
        for layer, (source, target) in enumerate(zip(source_features[item], target_features[item], strict=True)):
            if config.contrastive_layers and layer not in config.contrastive_layers:
                continue
            for size in config.patch_sizes:
                query, key = pooled(source, (h, w), size), pooled(target, (h, w), size)
                if config.contrastive_query == "target":
                    query, key = key, query
                positions = torch.arange(query[0].numel())
                if len(positions) > config.n_patches:
                    assert generators is not None
                    positions = torch.randperm(len(positions), generator=generators[item])[: config.n_patches]
                compare = plain_relations if config.contrastive_loss == "relations" else patch_nce
                cut_loss = cut_loss + compare(query, key, positions, config.temperature)
    return config.w_dds * dds_loss + config.w_cut * cut_loss, dds_loss, cut_loss


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|."""
    return ((actual - expected).norm() / expected.norm()).item()
