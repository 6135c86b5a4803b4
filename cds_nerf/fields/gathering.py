"""What single views say of a scene, gathered in three dimensions: a point gets one value, whichever camera sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

SAMPLES = 48
"""Points along a ray that are looked at, from near the camera to the surface."""
LEAST_VIEWS = 3
"""A point that fewer views see says nothing, unless there are fewer views at all."""
DEPTH_TOLERANCE = 0.1
"""A view sees a point whose distance is greater by no more than this share than that of the surface that it shows."""


@dataclass(frozen=True)
class SeenMap:
    """What one view says of all that it shows."""

    camera: Cameras
    """The view's camera [1]."""
    distance: Float[Tensor, "h w"]
    """From the camera to the surface, along each pixel's ray."""
    values: Float[Tensor, "height width"]
    """What it says, in 0..1, at any size."""


def gather(
    camera: Cameras, distance: Float[Tensor, "height width"], seen: Sequence[SeenMap], nearest: float
) -> Float[Tensor, "height width"]:
    """For each pixel the greatest agreement of the views along its ray, up to the surface.

    A point's value is the mean of what the views say that see it; free space counts, so that an object may grow into
    it. This carves as a visual hull does: where a single view is mistaken, the others outvote it.

    Args:
        camera: one camera [1].
        distance: from it to what each of its pixels shows; infinite ones see nothing.
        seen: the views that have a say, of cameras that `project` knows.
        nearest: how far from the camera the first point is that is looked at; the others follow in equal ratios.

    Returns:
        Values in 0..1; 0 where too few views see anything of the ray.
    """
    rays = camera.generate_rays(0, keep_shape=True)
    origins, directions = rays.origins.cpu(), rays.directions.cpu()
    surface = distance.cpu().nan_to_num(posinf=0.0)
    reach = surface * (nearest / surface.clamp(min=nearest)) ** torch.linspace(1, 0, SAMPLES)[:, None, None]
    points = origins + reach[..., None] * directions
    agreement, count = agreement_at(points.flatten(0, 2), seen)
    enough = count >= min(LEAST_VIEWS, len(seen))
    return torch.where(enough, agreement, 0).reshape(reach.shape).amax(dim=0)


def agreement_at(
    points: Float[Tensor, "points 3"], seen: Sequence[SeenMap]
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """The mean of what the views say of points that see them, and how many these are.

    Args:
        points: in the world.
        seen: the views that have a say, of cameras that `project` knows.

    Returns:
        Values in 0..1, 0 where no view sees a point; and the numbers of views.
    """
    total, count = torch.zeros(len(points)), torch.zeros(len(points))
    for view in seen:
        grid, visible = visible_points(view, points)
        values = F.grid_sample(view.values[None, None].cpu(), grid[None, None], align_corners=False)[0, 0, 0]
        total += torch.where(visible, values, 0)
        count += visible
    return total / count.clamp(min=1), count


def visible_points(
    view: SeenMap, points: Float[Tensor, "points 3"]
) -> tuple[Float[Tensor, "points 2"], Bool[Tensor, " points"]]:
    """Where in a view world points are, for `grid_sample`, and which of them it sees: no nearer surface hides them."""
    pixels, in_front = project(view.camera, points)
    size = torch.tensor([int(view.camera.width), int(view.camera.height)])
    grid = pixels / size * 2 - 1
    inside = in_front & (grid.abs() < 1).all(dim=-1)
    grid = torch.where(inside[:, None], grid, 0)
    surface = F.grid_sample(view.distance[None, None].cpu(), grid[None, None], mode="nearest", align_corners=False)[
        0, 0, 0
    ]
    distance = (points - view.camera.camera_to_worlds[0, :3, 3].cpu()).norm(dim=-1)
    return grid, inside & (distance <= surface * (1 + DEPTH_TOLERANCE))


def can_project(camera: Cameras) -> bool:
    """Whether `project` knows the kind of camera."""
    return int(camera.camera_type) in (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)


def project(
    camera: Cameras, points: Float[Tensor, "*batch 3"]
) -> tuple[Float[Tensor, "*batch 2"], Bool[Tensor, " *batch"]]:
    """Pixel coordinates (x, y) of world points, and whether they are in front of the camera.

    The inverse of nerfstudio's `Cameras.generate_rays`, with its distortion [k1, k2, k3, k4, p1, p2].

    Args:
        camera: one perspective or fisheye camera [1].
        points: in the world.
    """
    pose = camera.camera_to_worlds[0].cpu()
    local = (points - pose[:, 3]) @ pose[:, :3]
    x, y, depth = local[..., 0], -local[..., 1], -local[..., 2]
    if int(camera.camera_type) == CameraType.FISHEYE.value:
        across = torch.hypot(x, y).clamp(min=1e-9)
        angle = torch.atan2(across, depth)
        x, y = x / across * angle, y / across * angle
    else:
        x, y = x / depth.clamp(min=1e-9), y / depth.clamp(min=1e-9)
    if camera.distortion_params is not None:
        k1, k2, k3, k4, p1, p2 = camera.distortion_params[0].cpu().tolist()
        squared = x * x + y * y
        radial = 1 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))
        x, y = (
            radial * x + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            radial * y + 2 * p2 * x * y + p1 * (squared + 2 * y * y),
        )
    focal = torch.tensor([float(camera.fx), float(camera.fy)])
    centre = torch.tensor([float(camera.cx), float(camera.cy)])
    return torch.stack([x, y], dim=-1) * focal + centre, depth > 0
