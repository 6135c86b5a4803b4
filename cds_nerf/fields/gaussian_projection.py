"""Gaussians in space, as a pinhole camera sees them: EWA splatting (Zwicker et al., 2001) as gsplat defines it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LEAST_ALPHA = 1 / 255
"""A Gaussian that covers a pixel by less leaves it alone."""


class ProjectedGaussians(NamedTuple):
    """Gaussians in one image, in pixels; differentiable but for the radii."""

    radii: Int[Tensor, "gaussians 2"]
    """Half the sides of the box outside of which a Gaussian is not looked for; 0 for what is not seen at all."""
    means: Float[Tensor, "gaussians 2"]
    depths: Float[Tensor, " gaussians"]
    """Along the optical axis."""
    conics: Float[Tensor, "gaussians 3"]
    """The inverse covariances, blur included: xx, xy, yy."""
    compensations: Float[Tensor, " gaussians"]
    """What the blur has added to the area that is covered: opacities times this cover what they would without it."""


def covariances(
    quaternions: Float[Tensor, "gaussians 4"], scales: Float[Tensor, "gaussians 3"]
) -> Float[Tensor, "gaussians 3 3"]:
    """R S Sᵀ Rᵀ of rotations (w, x, y, z), of any length but 0, and standard deviations along the rotated axes."""
    w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    rotated = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2) * scales[:, None, :]
    return rotated @ rotated.mT


def project_gaussians(
    means: Float[Tensor, "gaussians 3"],
    covariances: Float[Tensor, "gaussians 3 3"],
    opacities: Float[Tensor, " gaussians"],
    viewmat: Float[Tensor, "4 4"],
    intrinsics: Float[Tensor, "3 3"],
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    blur: float,
    antialiased: bool,
    extent: Literal["circle", "box"],
) -> ProjectedGaussians:
    """Project Gaussians into an image, to first order around their means.

    Args:
        means: in the world.
        covariances: in the world; symmetric.
        opacities: 0 to 1; the box is made to them.
        viewmat: from the world to the camera, which looks along +z, with y down.
        intrinsics: in pixels.
        width: of the image, in pixels.
        height: of the image, in pixels.
        near_plane: what is nearer is not seen.
        far_plane: what is farther is not seen.
        radius_clip: what has no greater radius, in pixels, is not seen.
        blur: variance, in square pixels, of the blur that keeps every Gaussian about as large as a pixel.
        antialiased: whether the opacities will be multiplied by the compensations, which "box" asks for.
        extent: "circle" is gsplat 1.4's, three standard deviations along the longer axis; "box" is gsplat 1.5's, as far
            as the Gaussian's alpha is at least 1/255, along each side.
    """
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    seen = means @ rotation.mT + translation
    depths = seen[:, 2]
    in_range = (depths >= near_plane) & (depths <= far_plane)
    z = torch.where(in_range, depths, 1)
    slopes = seen[:, :2] / z[:, None]
    focals, centre = intrinsics.diagonal()[:2], intrinsics[:2, 2]
    means2d = slopes * focals + centre

    # Far outside of the image the first order is wrong: the slopes at which it is taken are held near the image.
    size = torch.tensor([width, height], device=means.device, dtype=means.dtype)
    margin = 0.15 * size / focals
    x, y = torch.clamp(slopes, -centre / focals - margin, (size - centre) / focals + margin).unbind(-1)
    fx, fy = focals
    zero = torch.zeros_like(z)
    # The Jacobian's rows times the rotation, so that the covariances need not be rotated.
    jacobian_x = torch.stack([fx / z, zero, -fx * x / z], dim=-1) @ rotation
    jacobian_y = torch.stack([zero, fy / z, -fy * y / z], dim=-1) @ rotation
    towards_x = (covariances @ jacobian_x[:, :, None])[:, :, 0]
    towards_y = (covariances @ jacobian_y[:, :, None])[:, :, 0]
    xx, xy, yy = (jacobian_x * towards_x).sum(-1), (jacobian_x * towards_y).sum(-1), (jacobian_y * towards_y).sum(-1)

    area_before = xx * yy - xy * xy
    xx, yy = xx + blur, yy + blur
    area = xx * yy - xy * xy
    is_area = in_range & (area > 0)
    area = torch.where(is_area, area, 1)
    # The least ratio stands for 0, where the root has no slope.
    compensations = (area_before / area).clamp_min(1e-12).sqrt()

    with torch.no_grad():
        if extent == "circle":
            middle = (xx + yy) / 2
            longer = middle + (middle.square() - area).clamp_min(0.01).sqrt()
            radii = (3 * longer.sqrt()).ceil()[:, None].expand(-1, 2)
        else:
            covering = opacities * compensations if antialiased else opacities
            sigmas = (2 * (covering / LEAST_ALPHA).clamp_min(1).log()).sqrt().clamp_max(3.33)
            radii = (sigmas[:, None] * torch.stack([xx, yy], dim=-1).sqrt()).ceil()
            is_area = is_area & (covering >= LEAST_ALPHA)
        is_seen = is_area & (radii > radius_clip).any(-1)
        is_seen &= ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
        radii = torch.where(is_seen[:, None], radii, 0).int()
    conics = torch.stack([yy / area, -xy / area, xx / area], dim=-1)
    return ProjectedGaussians(radii, means2d, depths, conics, compensations)
