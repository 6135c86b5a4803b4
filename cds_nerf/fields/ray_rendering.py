"""Differentiable rendering of a whole view in the memory of one chunk of rays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss
from nerfstudio.models.base_model import Model
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cds_nerf.errors import UserError


def rescale_camera(camera: Cameras, shorter_side: int, multiple: int) -> Cameras:
    """The camera with the same field of view at another size.

    Args:
        camera: one camera, as a batch [1].
        shorter_side: of the new image, in pixels.
        multiple: the longer side is rounded to a multiple of this many pixels, so that pixels may be stretched by a
            little.
    """
    width, height = int(camera.width), int(camera.height)
    scale = shorter_side / min(width, height)
    new_width, new_height = (
        shorter_side if side == min(width, height) else max(round(side * scale / multiple), 1) * multiple
        for side in (width, height)
    )
    camera = camera[:]  # a new object: the caller's keeps its size
    camera.fx, camera.cx = camera.fx * new_width / width, camera.cx * new_width / width
    camera.fy, camera.cy = camera.fy * new_height / height, camera.cy * new_height / height
    camera.width = torch.full_like(camera.width, new_width)
    camera.height = torch.full_like(camera.height, new_height)
    return camera


def camera_rays(camera: Cameras, camera_index: int) -> RayBundle:
    """All rays [height, width] of one camera [1], which carry its index among the training cameras."""
    first = torch.zeros(1, dtype=torch.long, device=camera.device)
    rays = camera.generate_rays(camera_indices=first, keep_shape=True)
    rays.camera_indices = torch.full((*rays.shape, 1), camera_index, device=rays.origins.device)
    return rays


def render_rays(
    model: Model, rays: RayBundle, rays_per_chunk: int, checkpointing: bool = True
) -> tuple[Float[Tensor, "3 height width"], dict[str, Float[Tensor, ""]]]:
    """Render rays in the model's training mode, differentiably with respect to its parameters.

    Each of several chunks of rays keeps no activations: its backward pass renders it again. The memory of both passes
    is that of one chunk, whatever the image's size.

    Args:
        model: any ray-based nerfstudio model whose outputs have "rgb" or "rgb_fine".
        rays: [height, width], with camera indices.
        rays_per_chunk: upper bound; chunks are of equal size, give or take one ray.
        checkpointing: False keeps every activation, for comparison.

    Returns:
        The image, and the model's own ray regularisers (see `ray_regularisers`), averaged over all rays.

    Raises:
        UserError: if the model's outputs have neither.
    """
    height, width = rays.shape
    rays = rays.flatten()

    def render_chunk(start: int, end: int) -> tuple[Tensor, dict[str, Tensor]]:
        # The model writes into the rays that it gets (near and far planes, pose corrections): a fresh slice each time.
        outputs = model(rays[start:end].to(model.device))
        color = finest_output(outputs, "rgb")
        if color is None:
            raise UserError(
                f"the source's {type(model).__name__} renders {', '.join(outputs)} but no rgb, which cds edits: "
                "use a field of another method, such as nerfacto or cds-source"
            )
        share = (end - start) / len(rays)
        return color, {name: share * loss for name, loss in ray_regularisers(model, outputs).items()}

    chunks = -(-len(rays) // rays_per_chunk)
    bounds = [len(rays) * chunk // chunks for chunk in range(chunks + 1)]
    colors, regularisers = [], []
    for start, end in pairwise(bounds):
        if checkpointing and chunks > 1 and torch.is_grad_enabled():
            color, losses = checkpoint(render_chunk, start, end, use_reentrant=False)
        else:
            color, losses = render_chunk(start, end)
        colors.append(color)
        regularisers.append(losses)
    image = torch.cat(colors).unflatten(0, (height, width)).permute(2, 0, 1)
    return image, {name: torch.stack([losses[name] for losses in regularisers]).sum() for name in regularisers[0]}


def finest_output(outputs: dict[str, Tensor], name: str) -> Tensor | None:
    """What a model renders under a name such as "rgb": by its fine pass where it has two, as NeRF and mip-NeRF do."""
    return outputs.get(name, outputs.get(f"{name}_fine"))


def ray_regularisers(model: Model, outputs: dict) -> dict[str, Float[Tensor, ""]]:
    """The losses of models that need no photograph, with the model's own multipliers; none for other models.

    The interlevel loss keeps the proposal networks with the field (mip-NeRF 360, arXiv 2111.12077, equation 13), the
    distortion loss keeps the density compact (equation 15). The coarse pass of NeRF, which places the samples of the
    fine one, is held to what that renders (arXiv 2003.08934, equation 6, where both are held to the photograph). The
    eikonal loss keeps a distance a distance (NeuS, arXiv 2106.10689, equation 15).
    """
    config: Any = getattr(model, "config", None)
    losses = {}
    if "weights_list" in outputs:
        weights, samples = outputs["weights_list"], outputs["ray_samples_list"]
        if hasattr(config, "interlevel_loss_mult"):
            losses["interlevel_loss"] = config.interlevel_loss_mult * interlevel_loss(weights, samples)
        if hasattr(config, "distortion_loss_mult"):
            losses["distortion_loss"] = config.distortion_loss_mult * distortion_loss(weights, samples)
    if "rgb_coarse" in outputs and "rgb_fine" in outputs:
        difference = outputs["rgb_coarse"] - outputs["rgb_fine"].detach()
        losses["coarse_loss"] = config.loss_coefficients["rgb_loss_coarse"] * difference.square().mean()
    if "eik_grad" in outputs:
        stretch = outputs["eik_grad"].norm(dim=-1) - 1
        losses["eikonal_loss"] = config.eikonal_loss_mult * stretch.square().mean()
    return losses
