"""Source and target under one noise, and what the prior says of them: where batches, precision and conditions are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cds_nerf.diffusion.latent_diffusion import LatentDiffusion, TextEmbedding
from cds_nerf.diffusion.self_attention import SelfAttention, self_attention_features

FLOAT16_LOSS_SCALE = 2.0**12
"""The contrastive loss is multiplied by this on its way back through a float16 UNet, where its gradient would
underflow, and the result divided by it."""


@dataclass(frozen=True)
class Sample:
    """What the UNet is asked about one view."""

    noisy_latents: Float[Tensor, "batch channels h w"]
    embedding: Float[Tensor, "1_or_batch tokens text_channels"]
    pooled: Float[Tensor, "1_or_batch pooled_channels"] | None


@dataclass(frozen=True)
class Features:
    """The up blocks' self-attention outputs under the prompts, from coarse to fine; the target's with their graph."""

    source: list[Float[Tensor, "batch channels h w"]]
    target: list[Float[Tensor, "batch channels h w"]]


class NoisyPair:
    """Source and target latents with one timestep and noise, and the prior's guided noise predictions of them.

    Args:
        diffusion: the prior.
        source: z, scaled latents in `loss_dtype`.
        target: ẑ, likewise; detached, and a leaf that requires a gradient where the contrastive loss needs one.
        source_text: y.
        target_text: ŷ.
        timestep: t of each item.
        noise: ε, standard normal.
        guidance_scale: s of ε̂(z_t, y) = ε_∅ + s (ε_y - ε_∅).
        feature_layers: whose features of source and target `noise_predictions` and `target_noise_prediction` keep, for
            the contrastive loss; none where there is no such loss.
    """

    def __init__(
        self,
        diffusion: LatentDiffusion,
        source: Float[Tensor, "batch channels h w"],
        target: Float[Tensor, "batch channels h w"],
        source_text: TextEmbedding,
        target_text: TextEmbedding,
        timestep: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch channels h w"],
        guidance_scale: float,
        feature_layers: Sequence[SelfAttention],
    ) -> None:
        self.source = source
        self.target = target.detach()
        self.timestep = timestep
        self.noise = noise
        self.features: Features | None = None
        self._diffusion = diffusion
        self._differentiable_target = target
        self._texts = {"source": source_text, "target": target_text}
        self._guidance_scale = guidance_scale
        self._feature_layers = feature_layers

    @property
    def training_timesteps(self) -> int:
        """How many timesteps the prior was trained with; t is one of 0..training_timesteps - 1."""
        return len(self._diffusion.alphas_cumprod)

    def alpha_cumprod(self, timestep: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 1 1"]:
        """ā at timesteps."""
        return self._diffusion.alphas_cumprod[timestep].to(self.source.dtype)[:, None, None, None]

    def add_noise(
        self, latents: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"] | None = None
    ) -> Float[Tensor, "batch channels h w"]:
        """√ā_t z + √(1 - ā_t) ε, with the pair's noise where no other is given."""
        return self._diffusion.add_noise(latents, self.noise if noise is None else noise, self.timestep)

    def noise_predictions(
        self, noise: Float[Tensor, "batch channels h w"] | None = None
    ) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
        """ε̂(z_t, y) and ε̂(ẑ_t, ŷ), without gradient; with the pair's noise where no other is given.

        4 UNet samples a view, one of which is taken with gradient where features are.
        """
        source = self._sample("source", self.add_noise(self.source, noise))
        empty_source = self._sample("source", source.noisy_latents, unconditional=True)
        conditional, unconditional, *target = self._predict([source, empty_source], noise)
        return self._guided(unconditional, conditional), self._guided(*target)

    def target_noise_prediction(self) -> Float[Tensor, "batch channels h w"]:
        """ε̂(ẑ_t, ŷ), without gradient.

        2 UNet samples a view; where features are taken, the target's is with gradient, and the source's prompt is a
        third.
        """
        source = [self._sample("source", self.add_noise(self.source))] if self._feature_layers else []
        *_, unconditional, conditional = self._predict(source)
        return self._guided(unconditional, conditional)

    def source_noise_prediction(
        self, noisy_latents: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        """ε̂ of any noisy latents under the source's prompt, differentiable; 2 UNet samples a view."""
        samples = [self._sample("source", noisy_latents, unconditional=empty) for empty in (True, False)]
        return self._guided(*self._call_unet(samples))

    def gradient(
        self,
        function: Callable[[Float[Tensor, "batch channels h w"]], Float[Tensor, " batch"]],
        latents: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, "batch channels h w"]:
        """Of a function at latents, where each item's value depends on that item alone; detached."""
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(function(latents).sum(), latents)
        return gradient

    def contrastive_gradient(self, loss: Float[Tensor, " batch"]) -> Float[Tensor, "batch channels h w"]:
        """Of a loss on `features`, with respect to the target latents; zero where no gradient is wanted of them."""
        if not loss.requires_grad:
            return torch.zeros_like(self.target)
        scale = FLOAT16_LOSS_SCALE if self._diffusion.dtype == torch.float16 else 1.0
        (gradient,) = torch.autograd.grad(scale * loss.sum(), self._differentiable_target)
        return gradient / scale

    def _predict(self, source: list[Sample], noise: Tensor | None = None) -> list[Tensor]:
        """The noise predictions of samples of the source, the first under its prompt, and of the target's two.

        As few UNet calls as can be: one, or two where the last sample is the one with gradient, for its features.
        """
        empty_target = self._sample("target", self.add_noise(self.target, noise), unconditional=True)
        if not self._feature_layers:
            with torch.no_grad():
                return self._call_unet([*source, empty_target, self._sample("target", empty_target.noisy_latents)])
        unet, layers, batch = self._diffusion.unet, self._feature_layers, len(self.target)
        with torch.no_grad(), self_attention_features(unet, slice(batch), layers) as source_features:
            predictions = self._call_unet([*source, empty_target])
        with self_attention_features(unet, layers=layers) as target_features:
            (last,) = self._call_unet([self._sample("target", self.add_noise(self._differentiable_target, noise))])
        self.features = Features(source_features, target_features)
        return [*predictions, last.detach()]

    def _sample(self, which: str, noisy_latents: Tensor, unconditional: bool = False) -> Sample:
        text = self._texts[which]
        if unconditional:
            return Sample(noisy_latents, text.unconditional, text.pooled_unconditional)
        return Sample(noisy_latents, text.conditional, text.pooled_conditional)

    def _call_unet(self, samples: list[Sample]) -> list[Float[Tensor, "batch channels h w"]]:
        """The noise prediction of each sample, all in one call."""
        batch = len(self.target)
        pooled = [sample.pooled.expand(batch, -1) for sample in samples if sample.pooled is not None]
        predictions = self._diffusion.predict_noise(
            torch.cat([sample.noisy_latents for sample in samples]),
            self.timestep.repeat(len(samples)),
            torch.cat([sample.embedding.expand(batch, -1, -1) for sample in samples]),
            torch.cat(pooled) if pooled else None,
        )
        return list(predictions.split(batch))

    def _guided(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        return unconditional + self._guidance_scale * (conditional - unconditional)
