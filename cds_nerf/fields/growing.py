"""Gaussians that an edit adds where the source has too few to move, and what it has to remember for that.

What is remembered of each Gaussian is kept where its moments are, in the state of the positions' optimizer: gsplat's
operations, checkpoints and steps that are taken back carry it along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gsplat.strategy.ops import duplicate, remove, split
from jaxtyping import Bool, Float, Int
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor
from torch.optim import Optimizer


@dataclass
class GrowingConfig:
    """Whether an edit of splats adds Gaussians, and which."""

    kind: Literal["off", "gsplat", "greatest"] = "off"
    """off: the source's number stays. gsplat: as its default strategy does, all whose gradient is above the threshold,
    while those of little opacity go. greatest: as GaussianEditor does, the share whose gradient is greatest."""
    threshold: float = 10.0
    """For gsplat: of the gradient in the image plane, in half images. A training's, such as 0.0008, is for losses that
    are means over pixels; an edit's are sums, and this is what a twentieth of the bundled world's exceed."""
    share: float = 0.01
    """For greatest: how many of the Gaussians each time, in 0..1."""
    every: int = 50
    """Steps between one time and the next."""
    until: float = 0.8
    """Share of the edit's steps after which none are added, so that the last ones find their place."""


Optimizers = dict[str, Optimizer]
"""One for each of the Gaussians' parameters, by its name."""


@dataclass(frozen=True)
class DrawnView:
    """What the rasteriser says of a view of which gradients are wanted."""

    means2d: Tensor
    """Where the Gaussians are in the image; has their gradients after the backward pass."""
    radii: Tensor
    width: int
    height: int


def note_gradients(
    model: SplatfactoModel,
    optimizers: Optimizers,
    views: Sequence[DrawnView],
    free: Bool[Tensor, " gaussians"],
    views_of_mean: int,
    sum_over_devices: Callable[[Sequence[Tensor]], None],
) -> None:
    """Add what a step's gradients are in the image plane to what is known of each Gaussian that was seen.

    Args:
        model: whose optimizers have just made a step.
        optimizers: these.
        views: that the step saw.
        free: which Gaussians may move; the others' gradients are not noted.
        views_of_mean: over how many views the step's loss was a mean, those of other devices included.
        sum_over_devices: sums tensors in place over all devices, of which each saw other views.
    """
    state = _state(model, optimizers)
    if not state:  # the optimizers have made no step yet
        return
    unknown = torch.zeros_like(model.means[:, 0])
    strength, times_seen = unknown.clone(), unknown.clone()
    for view in views:
        gradients = getattr(view.means2d, "absgrad" if model.strategy.absgrad else "grad")
        seen = (view.radii.reshape(model.num_points, -1) > 0).all(dim=-1)
        half = unknown.new_tensor([view.width, view.height]) / 2  # in units of half the image, as gsplat's are
        strength += torch.where(seen & free, (views_of_mean * gradients.reshape(-1, 2) * half).norm(dim=-1), 0)
        times_seen += seen
    sum_over_devices([strength, times_seen])
    state["source_number"] = state.get("source_number", torch.arange(1, model.num_points + 1).to(unknown))
    state["gradient_sum"] = state.get("gradient_sum", unknown) + strength
    state["views"] = state.get("views", unknown) + times_seen


@torch.no_grad()
def grow(model: SplatfactoModel, optimizers: Optimizers, config: GrowingConfig, seed: int) -> None:
    """Double the Gaussians that move most, small ones as they are and large ones by splitting them.

    The optimizers' states follow; new Gaussians have none of their own yet.

    Args:
        model: of which gradients were noted.
        optimizers: of the model.
        config: which ones; not "off".
        seed: of the places of those that are split.
    """
    state = _state(model, optimizers)
    if "views" not in state:
        return
    params, strategy = model.gauss_params, model.strategy
    chosen = _chosen(state["gradient_sum"] / state["views"].clamp(min=1), config)
    small = params["scales"].exp().amax(dim=-1) <= strategy.grow_scale3d
    duplicate(params, optimizers, {}, chosen & small)
    large = torch.cat([chosen & ~small, chosen.new_zeros(int((chosen & small).sum()))])
    if large.any():
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            split(params, optimizers, {}, large)
    if config.kind == "gsplat":
        remove(params, optimizers, {}, params["opacities"].sigmoid().flatten() < strategy.prune_opa)
    for name in ("gradient_sum", "views"):
        _state(model, optimizers)[name].zero_()


def _chosen(gradients: Float[Tensor, " gaussians"], config: GrowingConfig) -> Bool[Tensor, " gaussians"]:
    if config.kind == "gsplat":
        return gradients > config.threshold
    greatest = gradients.topk(int(config.share * len(gradients))).indices
    chosen = torch.zeros_like(gradients, dtype=torch.bool)
    chosen[greatest] = True
    return chosen & (gradients > 0)


def source_indices(model: SplatfactoModel, optimizers: Optimizers) -> Int[Tensor, " gaussians"]:
    """Which of the source's Gaussians each one is; -1 for those that the edit has added."""
    state = _state(model, optimizers) if optimizers else {}
    if "source_number" not in state:
        return torch.arange(model.num_points, device=model.device)
    return state["source_number"].long() - 1


def _state(model: SplatfactoModel, optimizers: Optimizers) -> dict[str, Any]:
    return optimizers["means"].state[model.means]
