"""Gradient descent on latents along the guidance: the edit itself, whatever the latents are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from cds_nerf.diffusion import TextEmbedding
from cds_nerf.errors import UserError
from cds_nerf.guidance import CDSGuidance
from cds_nerf.image.settings_check import check_descent


@dataclass(frozen=True)
class DescentStep:
    """Where the descent is after a step; the losses are those of the latents before it, summed over the batch."""

    step: int
    """From 1 to the number of steps."""
    latents: Float[Tensor, "batch channels h w"]
    """The target latents, detached; the next step changes them in place."""
    losses: dict[str, float]
    """The terms of the guidance's loss by name, unweighted."""


def descend_latents(
    guidance: CDSGuidance,
    source_latents: Float[Tensor, "batch channels h w"],
    source_text: TextEmbedding,
    target_text: TextEmbedding,
    steps: int = 200,
    learning_rate: float = 0.1,
    mask: Float[Tensor, "batch 1 h w"] | None = None,
    timesteps: Int[Tensor, " steps"] | Int[Tensor, "steps batch"] | None = None,
    noise: Float[Tensor, "steps batch channels h w"] | None = None,
    generator: Generator | Sequence[Generator] | None = None,
) -> Iterator[DescentStep]:
    """Optimise target latents, which start as the source's, by stochastic gradient descent on the guidance's loss.

    Args:
        guidance: the loss.
        source_latents: scaled latents of what is edited.
        source_text: the prompt that describes the source.
        target_text: the prompt that describes the edit.
        steps: how many.
        learning_rate: of plain SGD.
        mask: multiplies the gradient; latents where it is 0 stay the source's exactly.
        timesteps: of each step; drawn where not given.
        noise: of each step; drawn where not given.
        generator: draws what is not given; one for each batch item gives each what it would get alone.

    Yields:
        A `DescentStep` after each step.

    Raises:
        UserError: if steps or learning rate are out of range, or there are fewer timesteps or noises than steps.
        FloatingPointError: if a noise prediction or gradient overflows in half precision.
    """
    check_descent(steps, learning_rate)
    for name, given in {"timesteps": timesteps, "noise": noise}.items():
        if given is not None and len(given) < steps:
            raise UserError(f"{name} has {len(given)} entries for {steps} steps: give one for each step")
    target = source_latents.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([target], lr=learning_rate)
    for index in range(steps):
        with torch.enable_grad():
            out = guidance(
                source_latents,
                target,
                source_text,
                target_text,
                timestep=None if timesteps is None else timesteps[index].expand(len(target)),
                noise=None if noise is None else noise[index],
                generator=generator,
                step=index,
                steps=steps,
            )
            out.loss.backward()
        if mask is not None and target.grad is not None:
            target.grad *= mask
        optimizer.step()
        optimizer.zero_grad()
        yield DescentStep(index + 1, target.detach(), {name: loss.item() for name, loss in out.terms.items()})
