"""The guidance: a score, and the contrastive loss beside it, as one loss on target latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from cds_nerf.diffusion.latent_diffusion import LatentDiffusion, TextEmbedding
from cds_nerf.diffusion.self_attention import SelfAttention, self_attention_layers
from cds_nerf.errors import UserError
from cds_nerf.guidance.cds import contrastive_loss
from cds_nerf.guidance.config import CDSGuidanceConfig
from cds_nerf.guidance.contrastive_layers import select_layers
from cds_nerf.guidance.draws import Generators, draw_noise, draw_positions, draw_timesteps
from cds_nerf.guidance.gradient_strengths import GradientStrengths
from cds_nerf.guidance.noisy_pair import Features, NoisyPair
from cds_nerf.guidance.registry import score_class
from cds_nerf.guidance.timestep_schedule import timestep_bounds
from cds_nerf.transfers import send

CONTRASTIVE = "cut_loss"
"""The contrastive loss's name among the terms."""


@dataclass(frozen=True)
class CDSOutput:
    """What one call of the guidance gives; every loss is a sum over the batch."""

    loss: Float[Tensor, ""]
    """The sum of `weighted_terms`. Its value means little (a score is defined by its gradient); its gradient with
    respect to the target latents is the edit's direction."""
    terms: dict[str, Float[Tensor, ""]]
    """Unweighted, by name: the score's, such as "dds_loss", and "cut_loss" where there is a contrastive weight. The
    first is 2000 * sum(target latents * gradient) / (h * w)."""
    weighted_terms: dict[str, Float[Tensor, ""]]
    """The terms by name, as they enter `loss`."""
    gradient: Float[Tensor, "batch channels h w"]
    """The score, detached; the gradient of its term is this times 2000 / (h * w)."""
    timestep: Int[Tensor, " batch"]
    """The timestep of each batch item."""
    is_finite: Bool[Tensor, ""]
    """Whether all gradients are finite."""

    @property
    def dds_loss(self) -> Float[Tensor, ""]:
        """The score's term, unweighted, whatever the score is."""
        return next(iter(self.terms.values()))

    @property
    def cut_loss(self) -> Float[Tensor, ""]:
        """The contrastive loss, unweighted; 0 where it has no weight."""
        return self.terms.get(CONTRASTIVE, self.loss.new_zeros(()))


class CDSGuidance:
    """A score between source and target latents, by default Contrastive Denoising Score, as a loss.

    The UNet's part of the gradient is computed within the call, so that none of its graph is alive when `backward` goes
    on into whatever made the target latents. How many UNet samples a call takes is said by each score's module; the
    contrastive loss takes none that the score has not, but for the source's prompt beside a score that does not look at
    the source. `diffusion.unet.enable_gradient_checkpointing()` halves the memory of what is with gradient for about a
    quarter more time; the gradient is the same.

    Under `relative_w_cut` it remembers in `strengths` how strong both gradients were: one guidance for one edit.

    Args:
        config: the settings; read and checked anew at each call.
        diffusion: the model.

    Raises:
        UserError: if a setting cannot be used, or there is a contrastive weight and no such self-attention in the UNet.
    """

    def __init__(self, config: CDSGuidanceConfig, diffusion: LatentDiffusion) -> None:
        self.config = config
        self.diffusion = diffusion
        self.strengths = GradientStrengths()
        config.settle()
        self._contrastive_layers()

    def __call__(
        self,
        source_latents: Float[Tensor, "batch channels h w"],
        target_latents: Float[Tensor, "batch channels h w"],
        source_text: TextEmbedding,
        target_text: TextEmbedding,
        timestep: Int[Tensor, " batch"] | None = None,
        noise: Float[Tensor, "batch channels h w"] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        step: int | None = None,
        steps: int | None = None,
        check: bool = True,
    ) -> CDSOutput:
        """The loss of target latents against source latents, which share timestep and noise.

        Args:
            source_latents: scaled latents of the unedited image.
            target_latents: scaled latents of the edit; the losses are differentiable with respect to them.
            source_text: the prompt that describes the source.
            target_text: the prompt that describes the edit.
            timestep: of the noise; drawn from the score's grid between the configured bounds where not given.
            noise: standard normal; drawn where not given.
            generator: draws what is not given, and the patches. With a sequence of one generator an item, each item
                gets the draws that it would get alone.
            step: of the edit, from 0; a timestep schedule that depends on it wants to know.
            steps: how many the edit has in all.
            check: whether gradients that are not finite are an error; to know it, the host waits for the device.
                Otherwise `is_finite` of the output says it.

        Raises:
            UserError: if a setting cannot be used, the shapes do not fit together, a timestep is none of the score's,
                or a patch is larger than a feature map.
            FloatingPointError: if a noise prediction or gradient overflows in half precision, and that is checked.
        """
        config, diffusion = self.config, self.diffusion
        config.settle()  # it may have been changed since
        device, dtype = diffusion.device, diffusion.loss_dtype
        score = score_class(config.score)()
        generators = _one_each(generator, len(target_latents))
        if timestep is None:
            timestep = self._draw_timestep(generators, step, steps)
        if noise is None:
            noise = draw_noise(target_latents, generators)
        _check_inputs(source_latents, target_latents, (source_text, target_text), timestep, noise)
        _check_timestep(timestep, score.timestep_grid(len(diffusion.alphas_cumprod)), config.score)

        with torch.autocast(device.type, enabled=False):
            needs_gradient = torch.is_grad_enabled() and target_latents.requires_grad
            target = target_latents.detach().to(device, dtype).requires_grad_(needs_gradient)
            pair = NoisyPair(
                diffusion,
                send(source_latents.detach(), device, dtype),
                target,
                source_text,
                target_text,
                send(timestep, device),
                send(noise, device, dtype),
                config.guidance_scale,
                self._contrastive_layers(),
            )
            gradient = score.gradient(pair).detach()
            per_latent = 2000 / target[0, 0].numel()
            score_term = _Term((per_latent * pair.target * gradient).flatten(1).sum(dim=1), per_latent * gradient)
            terms = {f"{score.term or config.score}_loss": score_term}
            if config.has_contrastive_term:
                terms[CONTRASTIVE] = self._contrastive_term(pair, generators)
            is_finite = torch.stack([term.gradient.isfinite().all() for term in terms.values()]).all()
            if check and not is_finite:
                raise FloatingPointError(self.why_not_finite(timestep))
            weights: dict[str, float | Tensor] = dict.fromkeys(terms, config.w_dds)
            if config.has_contrastive_term:
                weights[CONTRASTIVE] = self._contrastive_weight(score_term, terms[CONTRASTIVE], needs_gradient)
            weighted_terms = {name: term.as_loss(target_latents, weights[name]) for name, term in terms.items()}
            return CDSOutput(
                loss=torch.stack(list(weighted_terms.values())).sum(),
                terms={name: term.as_loss(target_latents) for name, term in terms.items()},
                weighted_terms=weighted_terms,
                gradient=gradient,
                timestep=pair.timestep,
                is_finite=is_finite,
            )

    def why_not_finite(self, timestep: Int[Tensor, " batch"]) -> str:
        """What to say, and do, of gradients that are not finite."""
        return (
            f"the guidance's gradient is not finite in {self.diffusion.dtype} at timestep {timestep.tolist()}: "
            "use bfloat16 or float32 for the diffusion model, or look for non-finite latents"
        )

    def _contrastive_term(self, pair: NoisyPair, generators: Generators) -> _Term:
        if pair.features is None:  # of a score that asks the prior for neither prediction
            pair.noise_predictions()
        assert pair.features is not None
        _check_patch_sizes(self.config.patch_sizes, pair.features)
        loss = contrastive_loss(
            (maps.to(pair.source) for maps in pair.features.source),
            (maps.to(pair.source) for maps in pair.features.target),
            self.config,
            lambda available: draw_positions(available, self.config.n_patches, generators),
        )
        return _Term(loss.detach(), pair.contrastive_gradient(loss))

    def _contrastive_weight(self, score: _Term, contrastive: _Term, is_step: bool) -> float | Float[Tensor, " batch"]:
        """`w_cut`, or what gives the contrastive gradient its strength relative to the score's, for each item."""
        config = self.config
        if config.relative_w_cut is None:
            return config.w_cut
        if is_step:
            self.strengths.add(config.w_dds * score.gradient, contrastive.gradient)
        return config.relative_w_cut * self.strengths.ratio(contrastive.gradient)

    def _contrastive_layers(self) -> list[SelfAttention]:
        """The self-attentions that take part in the contrastive loss; none where it has no weight."""
        has_term = self.config.has_contrastive_term
        return select_layers(self.config, self_attention_layers(self.diffusion.unet)) if has_term else []

    def _draw_timestep(
        self, generators: Generators, step: int | None = None, steps: int | None = None
    ) -> Int[Tensor, " batch"]:
        timesteps = len(self.diffusion.alphas_cumprod)
        grid = score_class(self.config.score)().timestep_grid(timesteps)
        least, most = (round(bound * timesteps) for bound in timestep_bounds(self.config, step, steps))
        return draw_timesteps(grid, least, most, generators)


@dataclass(frozen=True)
class _Term:
    """A loss of each item, with its gradient with respect to the target latents; both detached."""

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch channels h w"]

    def as_loss(self, target_latents: Tensor, weight: float | Float[Tensor, " batch"] = 1.0) -> Float[Tensor, ""]:
        """The weighted sum over the batch, as a function of the target latents; one weight, or one an item."""
        weights = weight if isinstance(weight, Tensor) else torch.full_like(self.value, weight)
        gradient = weights[:, None, None, None] * self.gradient
        return _ValueWithGradient.apply(target_latents, (weights * self.value).sum(), gradient)


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


def _one_each(generator: Generator | Sequence[Generator] | None, batch: int) -> Generators:
    generators = list(generator) if isinstance(generator, Sequence) else [generator] * batch
    if len(generators) != batch:
        raise UserError(f"{len(generators)} generators for a batch of {batch}: give one, or one for each item")
    return generators


def _check_inputs(
    source: Tensor, target: Tensor, texts: tuple[TextEmbedding, ...], timestep: Tensor, noise: Tensor
) -> None:
    if source.shape != target.shape or target.ndim != 4:
        raise UserError(
            f"source latents of shape {list(source.shape)} and target latents of shape {list(target.shape)}: both must "
            "be [batch, channels, h, w] and alike"
        )
    batch = len(target)
    for text in texts:
        for embedding in (text.conditional, text.unconditional):
            if len(embedding) not in (1, batch):
                raise UserError(f"embeddings of {len(embedding)} prompts for a batch of {batch}: give 1 or {batch}")
    for name, given, shape in (("timestep", timestep, (batch,)), ("noise", noise, target.shape)):
        if given.shape != shape:
            raise UserError(f"{name} of shape {list(given.shape)}: it must be {list(shape)}")


def _check_timestep(timestep: Tensor, grid: range, score: str) -> None:
    if timestep.min() < grid[0] or timestep.max() > grid[-1]:
        raise UserError(f"timestep is {timestep.tolist()}; the score {score} takes {grid[0]} to {grid[-1]}")


def _check_patch_sizes(patch_sizes: Sequence[int], features: Features) -> None:
    smallest = min((maps.shape[-2:] for maps in features.target), key=min)
    if (size := max(patch_sizes)) > min(smallest):
        raise UserError(
            f"patch_sizes has {size}, but the UNet's smallest self-attention feature map here is "
            f"{smallest[1]}x{smallest[0]}: use smaller patches or larger images"
        )
