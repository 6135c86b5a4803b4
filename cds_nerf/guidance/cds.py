"""The Contrastive Denoising Score loss (CDS, CVPR 2024, arXiv 2311.18608)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from cds_nerf.diffusion.latent_diffusion import LatentDiffusion, TextEmbedding
from cds_nerf.diffusion.self_attention import self_attention_features, self_attention_layers
from cds_nerf.errors import UserError
from cds_nerf.guidance.config import CDSGuidanceConfig
from cds_nerf.guidance.patch_nce import patch_nce_loss

FLOAT16_LOSS_SCALE = 2.0**12
"""The contrastive loss is multiplied by this on its way back through a float16 UNet, where its gradient would
underflow, and the result divided by it."""


@dataclass(frozen=True)
class CDSOutput:
    """What one call of the guidance gives; every loss is a sum over the batch."""

    loss: Float[Tensor, ""]
    """w_dds * dds_loss + w_cut * cut_loss. Its value means little (the Delta Denoising Score is defined by its
    gradient); its gradient with respect to the target latents is the edit's direction."""
    dds_loss: Float[Tensor, ""]
    """2000 * sum(target latents * gradient) / (h * w), unweighted."""
    cut_loss: Float[Tensor, ""]
    """The contrastive loss, unweighted; 0 where w_cut is 0."""
    gradient: Float[Tensor, "batch channels h w"]
    """The Delta Denoising Score, noise prediction of the target minus that of the source, detached; the gradient of
    `dds_loss` is this times 2000 / (h * w)."""
    timestep: Int[Tensor, " batch"]
    """The timestep of each batch item."""


class CDSGuidance:
    """The Contrastive Denoising Score loss between source and target latents.

    One call runs the UNet on three samples a view without gradient (source unconditional and conditional, target
    unconditional) and on one with (target conditional), or on four without where `w_cut` is 0. The UNet's part of the
    gradient is computed within the call, so that none of its graph is alive when `backward` goes on into whatever
    made the target latents. `diffusion.unet.enable_gradient_checkpointing()` halves the memory of that part for about a
    quarter more time; the gradient is the same.

    Args:
        config: the settings.
        diffusion: the model.

    Raises:
        UserError: if `w_cut` is not 0 and the UNet's up blocks have no self-attention.
    """

    def __init__(self, config: CDSGuidanceConfig, diffusion: LatentDiffusion) -> None:
        self.config = config
        self.diffusion = diffusion
        if config.w_cut:
            self_attention_layers(diffusion.unet)

    def __call__(
        self,
        source_latents: Float[Tensor, "batch channels h w"],
        target_latents: Float[Tensor, "batch channels h w"],
        source_text: TextEmbedding,
        target_text: TextEmbedding,
        timestep: Int[Tensor, " batch"] | None = None,
        noise: Float[Tensor, "batch channels h w"] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> CDSOutput:
        """The loss of target latents against source latents, which share timestep and noise.

        Args:
            source_latents: scaled latents of the unedited image.
            target_latents: scaled latents of the edit; the losses are differentiable with respect to them.
            source_text: the prompt that describes the source.
            target_text: the prompt that describes the edit.
            timestep: of the noise; drawn uniformly between the configured bounds where not given.
            noise: standard normal; drawn where not given.
            generator: draws what is not given, and the patches. With a sequence of one generator an item, each item
                gets the draws that it would get alone.

        Raises:
            UserError: if the shapes do not fit together, or a patch is larger than a feature map.
            FloatingPointError: if a noise prediction or gradient overflows in half precision.
        """
        device, dtype = self.diffusion.device, self.diffusion.loss_dtype
        if source_latents.shape != target_latents.shape or target_latents.ndim != 4:
            raise UserError(
                f"source latents of shape {list(source_latents.shape)} and target latents of shape "
                f"{list(target_latents.shape)}: both must be [batch, channels, h, w] and alike"
            )
        needs_gradient = torch.is_grad_enabled() and target_latents.requires_grad
        batch, _, h, w = target_latents.shape
        generators: list[Generator | None] = list(generator) if isinstance(generator, Sequence) else [generator] * batch
        if len(generators) != batch:
            raise UserError(f"{len(generators)} generators for a batch of {batch}: give one, or one for each item")
        for text in (source_text, target_text):
            for embedding in (text.conditional, text.unconditional):
                if len(embedding) not in (1, batch):
                    raise UserError(f"embeddings of {len(embedding)} prompts for a batch of {batch}: give 1 or {batch}")
        if timestep is None:
            timestep = self._draw_timestep(generators)
        if noise is None:
            noise = _draw_noise(target_latents, generators)
        for name, given, shape in (("timestep", timestep, (batch,)), ("noise", noise, target_latents.shape)):
            if given.shape != shape:
                raise UserError(f"{name} of shape {list(given.shape)}: it must be {list(shape)}")
        timestep, noise = timestep.to(device), noise.to(device, dtype)

        with torch.autocast(device.type, enabled=False):
            target = target_latents.detach().to(device, dtype).requires_grad_(needs_gradient)
            noise_difference, cut_loss, cut_gradient = self._scores(
                source_latents.detach().to(device, dtype), target, source_text, target_text, timestep, noise, generators
            )
            dds_gradient = 2000 / (h * w) * noise_difference
            if not (dds_gradient.isfinite().all() and cut_gradient.isfinite().all()):
                raise FloatingPointError(
                    f"the guidance's gradient is not finite in {self.diffusion.dtype} at timestep {timestep.tolist()}: "
                    "use bfloat16 or float32 for the diffusion model, or look for non-finite latents"
                )
            dds_loss = _ValueWithGradient.apply(target_latents, (target.detach() * dds_gradient).sum(), dds_gradient)
            cut_loss = _ValueWithGradient.apply(target_latents, cut_loss, cut_gradient)
            return CDSOutput(
                loss=self.config.w_dds * dds_loss + self.config.w_cut * cut_loss,
                dds_loss=dds_loss,
                cut_loss=cut_loss,
                gradient=noise_difference,
                timestep=timestep,
            )

    def _scores(
        self,
        source: Tensor,
        target: Tensor,
        source_text: TextEmbedding,
        target_text: TextEmbedding,
        timestep: Tensor,
        noise: Tensor,
        generators: list[Generator | None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The noise difference [B,C,h,w], the contrastive loss [] and its gradient [B,C,h,w], all detached."""
        batch = len(target)

        def predict(latents: list[Tensor], texts: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
            noisy = torch.cat([self.diffusion.add_noise(part, noise, timestep) for part in latents])
            embedding = torch.cat([part.expand(batch, -1, -1) for part, _ in texts])
            pooled = [part.expand(batch, -1) for _, part in texts if part is not None]
            predictions = self.diffusion.predict_noise(
                noisy, timestep.repeat(len(latents)), embedding, torch.cat(pooled) if pooled else None
            )
            return list(predictions.split(batch))

        scale = self.config.guidance_scale
        latents = [source, source, target]
        source_unconditional, source_conditional = _conditions(source_text)
        target_unconditional, target_conditional = _conditions(target_text)
        texts = [source_unconditional, source_conditional, target_unconditional]
        if not self.config.w_cut:
            with torch.no_grad():
                source_0, source_1, target_0, target_1 = predict([*latents, target], [*texts, target_conditional])
            cut_loss, cut_gradient = target.new_zeros(()), torch.zeros_like(target)
        else:
            with (
                torch.no_grad(),
                self_attention_features(self.diffusion.unet, slice(batch, 2 * batch)) as source_features,
            ):
                source_0, source_1, target_0 = predict(latents, texts)
            with self_attention_features(self.diffusion.unet) as target_features:
                (target_1,) = predict([target], [target_conditional])
            cut_loss = self._contrastive_loss(source_features, target_features, generators)
            cut_gradient = torch.zeros_like(target)
            if cut_loss.requires_grad:
                loss_scale = FLOAT16_LOSS_SCALE if self.diffusion.dtype == torch.float16 else 1.0
                (cut_gradient,) = torch.autograd.grad(loss_scale * cut_loss, target)
                cut_gradient = cut_gradient / loss_scale
        noise_difference = (target_0 + scale * (target_1 - target_0)) - (source_0 + scale * (source_1 - source_0))
        return noise_difference.detach(), cut_loss.detach(), cut_gradient

    def _contrastive_loss(
        self, source_features: list[Tensor], target_features: list[Tensor], generators: list[Generator | None]
    ) -> Float[Tensor, ""]:
        """The sum of `patch_nce_loss` over layers, patch sizes and the batch."""
        dtype = self.diffusion.loss_dtype
        losses = []
        for source, target in zip(source_features, target_features, strict=True):
            for size in self.config.patch_sizes:
                if size > min(target.shape[-2:]):
                    raise UserError(
                        f"patch_sizes has {size}, but the UNet's smallest self-attention feature map here is "
                        f"{target.shape[-1]}x{target.shape[-2]}: use smaller patches or larger images"
                    )
                source_patches, target_patches = (F.avg_pool2d(maps.to(dtype), size) for maps in (source, target))
                positions = _draw_positions(target_patches[0, 0].numel(), self.config.n_patches, generators)
                pair = (source_patches, target_patches)
                query, key = pair if self.config.contrastive_query == "source" else pair[::-1]
                losses.append(patch_nce_loss(query, key, positions, self.config.temperature).sum())
        return torch.stack(losses).sum()

    def _draw_timestep(self, generators: list[Generator | None]) -> Int[Tensor, " batch"]:
        timesteps = len(self.diffusion.alphas_cumprod)
        low = int(self.config.min_timestep * timesteps)
        high = min(int(self.config.max_timestep * timesteps), timesteps - 1)
        low = min(low, high)
        return torch.cat(
            [torch.randint(low, high + 1, (1,), generator=g, device=g.device if g else "cpu").cpu() for g in generators]
        )


def _conditions(text: TextEmbedding) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """What the UNet sees of the empty prompt and of the prompt: the embedding, and for SDXL the pooled one."""
    return (
        (text.unconditional, text.pooled_unconditional),
        (text.conditional, text.pooled_conditional),
    )


def _draw_noise(like: Tensor, generators: list[Generator | None]) -> Tensor:
    # On the generator's device (the CPU without one), so that a seed means the same noise on every device.
    return torch.cat(
        [
            torch.randn((1, *like.shape[1:]), generator=g, device=g.device if g else "cpu", dtype=torch.float32).cpu()
            for g in generators
        ]
    )


def _draw_positions(available: int, wanted: int, generators: list[Generator | None]) -> Tensor | None:
    """`wanted` distinct indices below `available` for each generator, or None for all of them."""
    if wanted >= available:
        return None
    return torch.stack(
        [torch.randperm(available, generator=g, device=g.device if g else "cpu")[:wanted].cpu() for g in generators]
    )


class _ValueWithGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to the latents is already known."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient.to(latents))
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return grad_output.to(gradient) * gradient, None, None
