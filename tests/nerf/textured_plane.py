"""A third kind of field: a picture on the floor. What an edit asks of a field, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from cds_nerf.fields.field import Field, Within

HALF_SIDE, HEIGHT = 1.0, -0.3
"""Of the square picture, which lies level, below the cameras; what is beyond it is black."""


@dataclass
class PlaneModelConfig(ModelConfig):
    """A picture of so many pixels a side."""

    _target: type = field(default_factory=lambda: PlaneModel)
    pixels: int = 8


class PlaneModel(Model):
    """The picture's pixels."""

    config: PlaneModelConfig

    def populate_modules(self) -> None:
        self.picture = Parameter(torch.rand(1, 3, self.config.pixels, self.config.pixels))

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        return {"picture": [self.picture]}


class PlaneField:
    """The picture, seen where a camera's rays meet the floor."""

    def __init__(self, model: PlaneModel, rays_per_chunk: int) -> None:
        self.model = model

    def cameras(self, cameras: Cameras) -> Cameras:
        return cameras

    def begin_edit(self) -> None:
        pass

    def render_view(self, camera: Cameras, index: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        rays, distance = self._meet_floor(camera)
        places = (rays.origins + distance * rays.directions)[..., :2] / HALF_SIDE
        seen = F.grid_sample(self.model.picture, places[None], align_corners=False)[0]
        return seen * (distance > 0).permute(2, 0, 1), {}

    def render_pixels(self, camera: Cameras, index: int, pixels: Tensor, seed: int) -> Tensor | None:
        return self.render_view(camera, index, seed)[0].flatten(1)[:, pixels]

    @torch.no_grad()
    def render_frame(self, camera: Cameras) -> Tensor:
        return self.render_view(camera, index=0, seed=0)[0]

    @torch.no_grad()
    def render_distance(self, camera: Cameras) -> Tensor | None:
        return self._meet_floor(camera)[1][..., 0]

    def anchor_loss(self, source: Callable[[], Field], camera: Cameras, relevance: Tensor) -> Tensor | None:
        return None

    def hold(self, source: Callable[[], Field], within: Callable[[], Within | None]) -> None:
        pass

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        return self.model.get_param_groups()

    def callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        return []

    def prepare_to_load(self, step: int, state: dict[str, Tensor]) -> None:
        pass

    def _meet_floor(self, camera: Cameras) -> tuple[RayBundle, Tensor]:
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        return rays, (HEIGHT - rays.origins[..., 2:]) / rays.directions[..., 2:]
