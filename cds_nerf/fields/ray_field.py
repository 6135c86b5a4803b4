"""Fields whose cameras see along rays: nerfacto, TensoRF and their kin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import Model
from torch import Tensor
from torch.nn import Parameter

from cds_nerf.fields.field import Field, Within
from cds_nerf.fields.ray_rendering import camera_rays, finest_output, render_rays
from cds_nerf.fields.saturation import free_saturated_colors

SOURCE_STEPS = 10**6
"""The model's own schedules see an edit's steps after this many, when all annealing is over."""


class RayField:
    """A ray-based nerfstudio model as a field that can be edited.

    Args:
        model: renders `rgb` or `rgb_fine` along rays.
        rays_per_chunk: rays rendered at a time.
    """

    def __init__(self, model: Model, rays_per_chunk: int) -> None:
        self.model = model
        self.rays_per_chunk = rays_per_chunk

    def cameras(self, cameras: Cameras) -> Cameras:
        """The same: rays are bent as the lens bends them."""
        return cameras

    def begin_edit(self) -> None:
        """Hold the camera poses, and let saturated colours move."""
        for parameter in self.model.get_param_groups().get("camera_opt", []):
            parameter.requires_grad_(False)
        free_saturated_colors(self.model)

    def render_view(
        self, camera: Cameras, index: int, seed: int
    ) -> tuple[Float[Tensor, "3 height width"], dict[str, Float[Tensor, ""]]]:
        """A training view in the model's training mode, and its ray regularisers (see `render_rays`)."""
        self.model.train()
        torch.manual_seed(seed)
        rays = camera_rays(camera.to(self.model.device), index)
        return render_rays(self.model, rays, self.rays_per_chunk)

    def render_pixels(
        self, camera: Cameras, index: int, pixels: Int[Tensor, " pixels"], seed: int
    ) -> Float[Tensor, "3 pixels"]:
        """Some pixels of a training view, in the model's training mode."""
        self.model.train()
        torch.manual_seed(seed)
        rays = camera_rays(camera.to(self.model.device), index).flatten()[pixels.to(self.model.device)]
        image, _ = render_rays(self.model, rays.reshape((1, len(pixels))), self.rays_per_chunk)
        return image[:, 0]

    @torch.no_grad()
    def render_frame(self, camera: Cameras) -> Float[Tensor, "3 height width"]:
        """What a camera sees, in the model's evaluation mode."""
        self.model.eval()
        image = finest_output(self.model.get_outputs_for_camera(camera.to(self.model.device)), "rgb")
        self.model.train()
        assert image is not None  # or `render_view` would have said so
        return image.permute(2, 0, 1)

    @torch.no_grad()
    def render_distance(self, camera: Cameras) -> Float[Tensor, "height width"] | None:
        """The model's `depth`, which nerfstudio's ray-based models measure along each ray."""
        self.model.eval()
        outputs = self.model.get_outputs_for_camera(camera.to(self.model.device))
        self.model.train()
        depth = finest_output(outputs, "depth")
        return None if depth is None else depth[..., 0].cpu()

    def anchor_loss(
        self, source: Callable[[], Field], camera: Cameras, relevance: Float[Tensor, "1 height width"]
    ) -> Float[Tensor, ""] | None:
        """None: all of the scene shares the weights of the networks."""
        return None

    def hold(self, source: Callable[[], Field], within: Callable[[], Within | None]) -> None:
        """Nothing: all of the scene shares the weights of the networks."""

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """The model's parameter groups without the camera poses."""
        return {name: group for name, group in self.model.get_param_groups().items() if name != "camera_opt"}

    def callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """The model's own, which see a step at which all annealing is over.

        Those for certain steps (TensoRF's refinements of its grid) were for the source's training.
        """
        callbacks = [callback for callback in self.model.get_training_callbacks(attributes) if callback.iters is None]
        for callback in callbacks:
            callback.func = partial(_call_late, callback.func)
        return callbacks

    def prepare_to_load(self, step: int, state: dict[str, Tensor]) -> None:
        """TensoRF's parameters grow with the steps."""
        self.model.update_to_step(SOURCE_STEPS + step)


def _call_late(function: Any, *args: Any, step: int, **kwargs: Any) -> None:
    function(*args, step=SOURCE_STEPS + step, **kwargs)
