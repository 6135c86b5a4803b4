"""Gaussian splatting, written to be seen to be right: every Gaussian at every pixel, and gsplat's own projection."""

from __future__ import annotations

import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from torch import Tensor


def dense_rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmat: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    sh_degree: int | None,
    antialiased: bool = False,
    extent: str = "circle",
) -> tuple[Tensor, Tensor, Tensor]:
    """The image [H,W,C], its alpha [H,W,1] and the expected depth [H,W,1]."""
    covariances, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = (
        value[0]
        for value in _fully_fused_projection(
            means, covariances, viewmat[None], intrinsics[None], width, height, calc_compensations=True
        )
    )
    if antialiased:
        opacities = opacities * compensations
    if sh_degree is not None:
        colors = _spherical_harmonics(sh_degree, means - viewmat.inverse()[:3, 3], colors)
        colors = (colors + 0.5).clamp_min(0)

    x, y = torch.meshgrid(torch.arange(width).to(means) + 0.5, torch.arange(height).to(means) + 0.5, indexing="xy")
    if extent == "circle":
        boxes = radii[:, None].expand(-1, 2).to(means)
    else:
        sigmas = (2 * (255 * opacities).clamp_min(1).log()).sqrt().clamp_max(3.33)
        determinants = conics[:, 0] * conics[:, 2] - conics[:, 1] ** 2
        boxes = (sigmas[:, None] * (conics[:, [2, 0]] / determinants[:, None]).sqrt()).ceil()

    image = torch.zeros(height, width, colors.shape[1]).to(means)
    depth, alpha_of_pixel = torch.zeros_like(image[..., 0]), torch.zeros_like(image[..., 0])
    transmittance, is_done = torch.ones(height, width).to(means), torch.zeros(height, width, dtype=torch.bool)
    for i in depths.argsort(stable=True).tolist():
        if radii[i] == 0:
            continue
        left, top = ((means2d[i] - boxes[i]) / 16).floor() * 16
        right, bottom = ((means2d[i] + boxes[i]) / 16).ceil() * 16
        is_in_tiles = (left < x) & (x < right) & (top < y) & (y < bottom)
        dx, dy = means2d[i, 0] - x, means2d[i, 1] - y
        exponent = (conics[i, 0] * dx**2 + conics[i, 2] * dy**2) / 2 + conics[i, 1] * dx * dy
        alpha = (opacities[i] * torch.exp(-exponent)).clamp_max(0.999)
        alpha = torch.where(is_in_tiles & (alpha >= 1 / 255), alpha, 0)
        is_done = is_done | (transmittance * (1 - alpha) <= 1e-4)
        weight = torch.where(is_done, 0, alpha * transmittance)
        image = image + weight[..., None] * colors[i]
        depth = depth + weight * depths[i]
        alpha_of_pixel = alpha_of_pixel + weight
        transmittance = torch.where(is_done, transmittance, transmittance * (1 - alpha))
    return image, alpha_of_pixel[..., None], (depth / alpha_of_pixel.clamp_min(1e-10))[..., None]
