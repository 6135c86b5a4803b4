"""Whether the views of a field are views of one scene: each is carried over into a neighbouring one and compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

DEPTH_TOLERANCE = 0.02
"""A point is visible in a view if its distance is no greater than what is seen there by more than this share."""


@dataclass(frozen=True)
class PosedView:
    """What a pinhole camera sees of a field. Camera axes are nerfstudio's: x right, y up, z backward."""

    image: Float[Tensor, "3 height width"]
    """Colours in 0..1."""
    distance: Float[Tensor, "height width"]
    """From the camera's centre to what each pixel shows, along its ray."""
    camera_to_world: Float[Tensor, "3 4"]
    """The camera's pose."""
    focal: tuple[float, float]
    """Focal lengths in x and y, in pixels."""
    centre: tuple[float, float]
    """The principal point in x and y, in pixels from the upper left corner."""

    def points(self) -> Float[Tensor, "height width 3"]:
        """Where in the world each pixel's colour is."""
        height, width = self.distance.shape
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        directions = torch.stack(
            [(x - self.centre[0]) / self.focal[0], (self.centre[1] - y) / self.focal[1], -torch.ones_like(x)], dim=-1
        )
        directions = F.normalize(directions, dim=-1) @ self.camera_to_world[:, :3].T
        return self.camera_to_world[:, 3] + self.distance[..., None] * directions

    def project(
        self, points: Float[Tensor, "*batch 3"]
    ) -> tuple[Float[Tensor, "*batch 2"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Pixel coordinates (x, y) of world points, their depths along the optical axis, and their distances."""
        local = (points - self.camera_to_world[:, 3]) @ self.camera_to_world[:, :3]
        depth = -local[..., 2]
        safe = depth.clamp(min=1e-6)
        x = self.centre[0] + self.focal[0] * local[..., 0] / safe
        y = self.centre[1] - self.focal[1] * local[..., 1] / safe
        return torch.stack([x, y], dim=-1), depth, local.norm(dim=-1)

    def visible(
        self, points: Float[Tensor, "height width 3"]
    ) -> tuple[Bool[Tensor, "height width"], Float[Tensor, "height width 2"]]:
        """Which world points this view sees, and where: coordinates for `grid_sample`, in -1..1.

        A point is seen if it lies within the picture, in front of the camera, and no nearer surface hides it.
        """
        xy, depth, distance = self.project(points)
        height, width = self.distance.shape
        grid = torch.stack([xy[..., 0] / width, xy[..., 1] / height], dim=-1) * 2 - 1
        inside = (depth > 0) & (grid.abs() < 1).all(dim=-1)
        grid = torch.where(inside[..., None], grid, torch.zeros_like(grid))
        seen = F.grid_sample(self.distance[None, None], grid[None], mode="nearest", align_corners=False)[0, 0]
        return inside & (distance <= seen * (1 + DEPTH_TOLERANCE)), grid


def warp_error(view: PosedView, neighbour: PosedView) -> tuple[float, float]:
    """How much a view's colours differ from those that a neighbouring view shows of the same points.

    Each pixel is carried by its own distance to its point in the world, and from there into the neighbour. It counts
    if the neighbour sees that point. After the warping errors of video editing (Lai et al. 2018, arXiv 1808.00449),
    with the field's own depth in place of optical flow. Reflections and the field's errors count as well: compare with
    the unedited field's.

    Returns:
        The root mean square difference of the colours in 0..1 (NaN where no pixel counts), and the share of the pixels
        that count.
    """
    counts, grid = neighbour.visible(view.points())
    colors = F.grid_sample(neighbour.image[None], grid[None], padding_mode="border", align_corners=False)[0]
    errors = (view.image - colors).square().mean(dim=0)[counts]
    return errors.mean().sqrt().item(), counts.float().mean().item()


def neighbours(views: list[PosedView]) -> list[int]:
    """For each view the other one whose camera stands nearest, as its index."""
    positions = torch.stack([view.camera_to_world[:, 3] for view in views])
    distances = torch.cdist(positions, positions)
    return distances.fill_diagonal_(torch.inf).argmin(dim=1).tolist()
