"""Fields of Gaussian splats: nerfstudio's splatfacto and splatfacto-big."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor
from torch.nn import Parameter, ParameterDict
from torch.optim import Optimizer

from cds_nerf.fields.field import Field, Within
from cds_nerf.fields.growing import DrawnView, GrowingConfig, grow, note_gradients, source_indices
from cds_nerf.fields.saturation import clamp_with_way_back, free_saturated
from cds_nerf.fields.spherical_harmonics import spherical_harmonics
from cds_nerf.fields.undistortion import undistorted
from cds_nerf.seeding import seed_for

LOADED_STEP = 30000
"""The step that splatfacto takes itself to be at when it has loaded a checkpoint."""
DISTANCE_SAMPLES = 4
"""Pixels in each direction over which the distance of one is averaged."""


class SplatField:
    """A splatfacto model as a field that can be edited.

    Views are drawn here and not by the model's `get_outputs`, which in training draws on a background that is another
    each time, at a size and with spherical harmonics that depend on the step, and changes the camera that it is given.
    What is drawn is what `get_outputs` draws in evaluation: a source and its edit have one background. Training views
    have their optimised pose and their bilateral grid, which an edit holds, as it would hide there.

    Args:
        model: a splatfacto model.
    """

    def __init__(self, model: SplatfactoModel) -> None:
        self.model = model
        # Kept with the model and its copies: the viewer gives the model the one that its user chooses.
        self.background = vars(model).setdefault("background_of_evaluation", model.background_color)
        self.optimizers: dict[str, Optimizer] = {}
        self.drawn: list[DrawnView] = []
        self.within: Within | None = None
        self.free_in_source: Bool[Tensor, " gaussians"] | None = None  # the source's that may move; None for all

    def cameras(self, cameras: Cameras) -> Cameras:
        """Without lens distortion, as the model saw the photographs (see `undistorted`)."""
        return undistorted(cameras)

    def begin_edit(self) -> None:
        """Hold the cameras' poses and the bilateral grids."""
        for name, group in self.model.get_param_groups().items():
            if name not in self.model.gauss_params:
                for parameter in group:
                    parameter.requires_grad_(False)

    def render_view(
        self, camera: Cameras, index: int, seed: int
    ) -> tuple[Float[Tensor, "3 height width"], dict[str, Float[Tensor, ""]]]:
        """A training view, and the model's loss on long Gaussians if it has one. Nothing in it is random."""
        model = self.model
        camera = camera.to(model.device)
        camera.metadata = {"cam_idx": index}
        image = self._draw(camera, model.camera_optimizer.apply_to_camera(camera))[..., :3]
        if model.config.use_bilateral_grid:
            image = model._apply_bilateral_grid(image[None], index, *image.shape[:2])[0]
        return image.permute(2, 0, 1), self._regularisers()

    def render_pixels(
        self, camera: Cameras, index: int, pixels: Int[Tensor, " pixels"], seed: int
    ) -> Float[Tensor, "3 pixels"] | None:
        """None: splats are drawn a view at a time, and `hold` leaves what is outside as it is."""
        return None

    @torch.no_grad()
    def render_frame(self, camera: Cameras) -> Float[Tensor, "3 height width"]:
        """What a camera sees, without poses' corrections and bilateral grids."""
        camera = camera.to(self.model.device)
        return self._draw(camera, camera.camera_to_worlds)[..., :3].permute(2, 0, 1)

    @torch.no_grad()
    def render_distance(self, camera: Cameras) -> Float[Tensor, "height width"] | None:
        """The expected depth, which gsplat measures along the optical axis, along each pixel's ray.

        It is drawn finer and averaged: in a small image each Gaussian is as wide as a pixel at the least, which brings
        surfaces nearer than they are.
        """
        finer = camera.to(self.model.device)[:]  # a new object: the caller's keeps its size
        finer.rescale_output_resolution(DISTANCE_SAMPLES)
        depth = self._draw(finer, finer.camera_to_worlds)[..., 3]
        y, x = (torch.arange(side, device=depth.device) + 0.5 for side in depth.shape)
        slopes_x, slopes_y = (x - finer.cx[0]) / finer.fx[0], (y - finer.cy[0]) / finer.fy[0]
        distance = depth * (1 + slopes_x.square() + slopes_y.square()[:, None]).sqrt()
        return F.avg_pool2d(distance[None], DISTANCE_SAMPLES)[0].cpu()

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """The Gaussians' parameters."""
        return self.model.get_gaussian_param_groups()

    def anchor_loss(
        self, source: Callable[[], Field], camera: Cameras, relevance: Float[Tensor, "1 height width"]
    ) -> Float[Tensor, ""] | None:
        """How far the source's Gaussians have gone that a camera sees outside of what is relevant.

        Sum of the squared changes of positions, relative to the Gaussians' sizes, of logarithms of scales and of logits
        of opacities (GaussianEditor, arXiv 2311.14521, anchors all that was there before the edit). Those that the edit
        has added are free.
        """
        model, before = self.model, source().model
        indices = source_indices(model, self.optimizers)
        weights = (1 - self._at_gaussians(camera, relevance)) * (indices >= 0)
        changes = [
            (model.means - before.means[indices]) / before.scales[indices].exp().amax(dim=-1, keepdim=True),
            model.scales - before.scales[indices],
            model.opacities - before.opacities[indices],
        ]
        return (weights * sum(change.square().sum(dim=-1) for change in changes)).sum()

    def hold(self, source: Callable[[], Field], within: Callable[[], Within | None]) -> None:
        """Let the source's Gaussians stay whose centres are less than half within the region, to the last bit.

        Nothing that an optimizer takes from their losses could move them: to Adam the weakest gradient is as good as a
        strong one. Those that the edit has added are free.
        """
        says = within()
        if says is self.within:
            return
        self.within, self.free_in_source = says, None
        if says is not None:
            self.free_in_source = says(source().model.means.detach().cpu()).to(self.model.device) >= 0.5
            for name, optimizer in self.optimizers.items():
                if name in self.model.gauss_params and (state := optimizer.state.get(self.model.gauss_params[name])):
                    state["exp_avg"][~self.free] = 0  # or those that were free until now would go on for some steps

    @property
    def free(self) -> Bool[Tensor, " gaussians"]:
        """Which Gaussians may move."""
        indices = source_indices(self.model, self.optimizers)
        if self.free_in_source is None:
            return torch.ones_like(indices, dtype=torch.bool)
        return (indices < 0) | self.free_in_source[indices]

    def _movable(self) -> dict[str, Tensor]:
        """The Gaussians' parameters by name; no gradient passes from here to those that are held."""
        values = dict(self.model.gauss_params.items())
        if self.free_in_source is None or not torch.is_grad_enabled():
            return values
        free = self.free
        values = {name: value.view_as(value) for name, value in values.items()}  # copies would take memory
        for value in values.values():
            value.register_hook(lambda gradient: gradient * free.view(-1, *[1] * (gradient.dim() - 1)))
        return values

    @torch.no_grad()
    def _at_gaussians(self, camera: Cameras, values: Float[Tensor, "1 height width"]) -> Float[Tensor, " gaussians"]:
        """The values of a view's pixels at the Gaussians' centres; 1 at those that are not in the view."""
        camera = camera.to(self.model.device)
        world_to_camera = splatfacto.get_viewmat(camera.camera_to_worlds)[0]
        places = self.model.means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
        pixels = places @ camera.get_intrinsics_matrices()[0].T
        size = pixels.new_tensor([int(camera.width), int(camera.height)])
        grid = pixels[:, :2] / pixels[:, 2:].clamp(min=1e-6) / size * 2 - 1
        inside = (pixels[:, 2] > 0) & (grid.abs() < 1).all(dim=-1)
        grid = torch.where(inside[:, None], grid, 0)
        return torch.where(
            inside, F.grid_sample(values[None].to(grid), grid[None, None], align_corners=False)[0, 0, 0], 1
        )

    def callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """What adds Gaussians; the model's own belong to a source's training."""
        pipeline: Any = attributes.pipeline
        trainer: Any = attributes.trainer
        growing: GrowingConfig = pipeline.config.growing
        assert attributes.optimizers is not None
        optimizers = attributes.optimizers
        self.optimizers = optimizers.optimizers

        def after_step(step: int) -> None:
            views, self.drawn = self.drawn, []
            if growing.kind == "off" or trainer.skipped_in_a_row:
                return
            note_gradients(self.model, self.optimizers, views, self.free, pipeline.drawn_per_step, pipeline.devices.sum)
            if (step + 1) % growing.every == 0 and step + 1 <= growing.until * pipeline.steps:
                grow(self.model, self.optimizers, growing, seed_for(pipeline.seed, "growing", step))
                optimizers.parameters |= self.parameter_groups()

        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after_step)]

    def prepare_to_load(self, step: int, state: dict[str, Tensor]) -> None:
        """Make as many Gaussians as the checkpoint has, where they are not as many."""
        model = self.model
        model.step = LOADED_STEP
        count = len(state.get("gauss_params.means", model.means))
        if count != model.num_points:
            model.gauss_params = ParameterDict(
                {name: values.new_zeros(count, *values.shape[1:]) for name, values in model.gauss_params.items()}
            )

    def _draw(
        self, camera: Cameras, camera_to_world: Float[Tensor, "1 3 4"]
    ) -> Float[Tensor, "height width rgb_and_depth"]:
        """What a pinhole camera sees from a pose: colours in 0..1, on the background of evaluation, and depths."""
        model, config, values = self.model, self.model.config, self._movable()
        drawn, alpha, info = splatfacto.rasterization(
            means=values["means"],
            quats=values["quats"],
            scales=values["scales"].exp(),
            opacities=values["opacities"].sigmoid().squeeze(-1),
            colors=self._colors(values, camera_to_world[0, :, 3]),
            viewmats=splatfacto.get_viewmat(camera_to_world),
            Ks=camera.get_intrinsics_matrices(),
            width=int(camera.width),
            height=int(camera.height),
            packed=False,
            near_plane=0.01,
            far_plane=1e10,
            render_mode="RGB+ED",
            sparse_grad=False,
            absgrad=model.strategy.absgrad,
            rasterize_mode=config.rasterize_mode,
        )
        if info["means2d"].requires_grad:  # for `note_gradients`
            info["means2d"].retain_grad()
            self.drawn.append(DrawnView(**{name: info[name] for name in ("means2d", "radii", "width", "height")}))
        background = {"black": torch.zeros(3), "white": torch.ones(3)}.get(config.background_color)
        if background is None:  # "random" in training
            background = self.background
        image = clamp_with_way_back(drawn[..., :3] + (1 - alpha) * background.to(drawn), 0, 1)
        depth = torch.where(alpha > 0, drawn[..., 3:], drawn[..., 3:].detach().max())
        return torch.cat([image, depth], dim=-1)[0]

    def _colors(self, values: Mapping[str, Tensor], position: Float[Tensor, 3]) -> Float[Tensor, "gaussians 3"]:
        """Of the Gaussians, seen from a position; those at the end of their range have gradients that lead back."""
        config = self.model.config
        if config.sh_degree == 0:
            return free_saturated(values["features_dc"].sigmoid())
        degree = min(LOADED_STEP // config.sh_degree_interval, config.sh_degree)
        coefficients = torch.cat([values["features_dc"][:, None], values["features_rest"]], dim=1)
        return clamp_with_way_back(spherical_harmonics(degree, values["means"] - position, coefficients) + 0.5, 0)

    def _regularisers(self) -> dict[str, Float[Tensor, ""]]:
        """splatfacto's loss on Gaussians that are much longer than wide (PhysGaussian, arXiv 2311.12198)."""
        config = self.model.config
        if not config.use_scale_regularization:
            return {}
        scales = self._movable()["scales"].exp()
        excess = scales.amax(dim=-1) / scales.amin(dim=-1) - config.max_gauss_ratio
        return {"scale_reg": 0.1 * excess.clamp_min(0).mean()}
