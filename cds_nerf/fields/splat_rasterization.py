"""gsplat's `rasterization` in torch alone, for any device, where gsplat has none of its CUDA kernels.

It draws what the kernels of gsplat 1.4 and 1.5 draw, and differs from them in this: a pixel at which rounding makes the
Mahalanobis distance negative is drawn, and not left out; transmittances are exponentials of sums of logarithms in
double precision, and not products in single precision; Gaussians that are not seen have finite values in what is
returned, and not what lay in memory; the tiles' lists of Gaussians are not returned.
"""

from __future__ import annotations

from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cds_nerf.fields.gaussian_compositing import composite
from cds_nerf.fields.gaussian_projection import ProjectedGaussians, covariances, project_gaussians
from cds_nerf.fields.spherical_harmonics import spherical_harmonics


def rasterization(
    means: Float[Tensor, "gaussians 3"],
    quats: Float[Tensor, "gaussians 4"],
    scales: Float[Tensor, "gaussians 3"],
    opacities: Float[Tensor, " gaussians"],
    colors: Tensor,
    viewmats: Float[Tensor, "cameras 4 4"],
    Ks: Float[Tensor, "cameras 3 3"],  # noqa: N803 - gsplat's name
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Float[Tensor, "cameras channels"] | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Float[Tensor, "gaussians 3 3"] | None = None,
    *,
    extent: Literal["circle", "box"] | None = None,
    **unsupported: Any,
) -> tuple[Float[Tensor, "cameras height width channels"], Float[Tensor, "cameras height width 1"], dict[str, Any]]:
    """Render Gaussians; differentiable, once, in all of their parameters and in the cameras' poses.

    Args:
        means: in the world.
        quats: rotations (w, x, y, z), of any length but 0.
        scales: standard deviations along the rotated axes.
        opacities: 0 to 1.
        colors: [(cameras,) gaussians, channels], or coefficients [(cameras,) gaussians, bases, 3] of spherical
            harmonics, whose sums plus 0.5 are the colours, but at least 0.
        viewmats: from the world to the cameras, which look along +z, with y down.
        Ks: intrinsics, in pixels.
        width: of the images, in pixels.
        height: of the images, in pixels.
        near_plane: what is nearer is not seen.
        far_plane: what is farther is not seen.
        radius_clip: what has no greater radius, in pixels, is not seen.
        eps2d: variance, in square pixels, of the blur that keeps every Gaussian about as large as a pixel.
        sh_degree: of the spherical harmonics that are used; none if `colors` are colours.
        packed: whether the intermediate results leave out what is not seen.
        tile_size: side of the tiles, in pixels: see `composite`.
        backgrounds: what shows where nothing covers it; black without it. None is behind depths.
        render_mode: colours, depths along the optical axis weighted like colours (D), those divided by the alpha, which
            is the expected depth (ED), or both, with the depth as the last channel.
        sparse_grad: not here.
        absgrad: whether the backward pass writes the sums of the absolute gradients with respect to the projected means
            into `info["means2d"].absgrad`.
        rasterize_mode: "antialiased" lowers opacities by what the blur has added to the area.
        channel_chunk: of no meaning here.
        distributed: not here.
        camera_model: "pinhole" is the one that is here.
        segmented: of no meaning here.
        covars: instead of `quats` and `scales`.
        extent: of the box around each Gaussian: see `project_gaussians`; that of the gsplat that is installed if none
            is given.
        unsupported: what else gsplat 1.5 takes; not here, but for what means nothing.

    Returns:
        The images, their alphas, and the intermediate results that gsplat's densification strategies ask for, in the
        shapes of the gsplat whose extent it is.

    Raises:
        NotImplementedError: if something is asked for that is not here.
    """
    asked = {"sparse_grad": sparse_grad, "distributed": distributed, **unsupported}
    missing = [name for name, value in asked.items() if _is_asked(value)]
    if camera_model != "pinhole" or missing:
        raise NotImplementedError(
            f"{', '.join(missing) or f'a {camera_model} camera'}: gsplat has it on a GPU with CUDA, not in plain torch"
        )
    extent = extent or ("circle" if version("gsplat").startswith("1.4") else "box")
    if covars is None:
        covars = covariances(quats, scales)
    cameras = [
        project_gaussians(
            means,
            covars,
            opacities,
            viewmat,
            intrinsics,
            width,
            height,
            near_plane=near_plane,
            far_plane=far_plane,
            radius_clip=radius_clip,
            blur=eps2d,
            antialiased=rasterize_mode == "antialiased",
            extent=extent,
        )
        for viewmat, intrinsics in zip(viewmats, Ks, strict=True)
    ]
    seen = ProjectedGaussians(*map(torch.stack, zip(*cameras, strict=True)))
    opacities = opacities.expand(len(viewmats), -1)
    if rasterize_mode == "antialiased":
        opacities = opacities * seen.compensations
    is_seen = (seen.radii > 0).all(-1)
    colors = colors.expand(len(viewmats), *colors.shape[-3 if sh_degree is not None else -2 :])
    directions = means - viewmats.inverse()[:, None, :3, 3]
    camera_ids = gaussian_ids = None
    if packed:
        camera_ids, gaussian_ids = is_seen.nonzero(as_tuple=True)
        seen = ProjectedGaussians(*(values[camera_ids, gaussian_ids] for values in seen))
        opacities, colors, directions = (v[camera_ids, gaussian_ids] for v in (opacities, colors, directions))
    if sh_degree is not None:
        colors = (spherical_harmonics(sh_degree, directions, colors) + 0.5).clamp_min(0)

    absolute_gradients = torch.zeros_like(seen.means) if absgrad else None
    if absgrad:
        seen.means.absgrad = absolute_gradients  # type: ignore[attr-defined]
    shown = {"RGB": colors, "D": seen.depths[..., None]}
    channels = torch.cat([shown[kind.removeprefix("E")] for kind in render_mode.split("+")], dim=-1)
    members: list[Any] = list(range(len(viewmats)))
    if packed:
        ends = is_seen.sum(-1).cumsum(0).tolist()
        members = [slice(start, end) for start, end in pairwise([0, *ends])]
    images, alphas = map(
        torch.stack,
        zip(
            *(
                composite(
                    seen.means[of_camera],
                    seen.conics[of_camera],
                    channels[of_camera],
                    opacities[of_camera],
                    seen.depths[of_camera],
                    seen.radii[of_camera],
                    width,
                    height,
                    tile_size,
                    None if absolute_gradients is None else absolute_gradients[of_camera],
                )
                for of_camera in members
            ),
            strict=True,
        ),
    )
    colored = colors.shape[-1] if render_mode.startswith("RGB") else 0
    if backgrounds is not None and colored:
        behind = (1 - alphas) * backgrounds[:, None, None, :]
        images = torch.cat([images[..., :colored] + behind, images[..., colored:]], dim=-1)
    if "ED" in render_mode:
        images = torch.cat([images[..., :colored], images[..., colored:] / alphas.clamp_min(1e-10)], dim=-1)
    info = {
        "camera_ids": camera_ids,
        "gaussian_ids": gaussian_ids,
        "radii": seen.radii[..., 0] if extent == "circle" else seen.radii,
        "means2d": seen.means,
        "depths": seen.depths,
        "conics": seen.conics,
        "opacities": opacities,
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "n_cameras": len(viewmats),
    }
    return images, alphas, info


def _is_asked(value: Any) -> bool:
    return (
        value is not None and value is not False and getattr(value, "name", None) != "GLOBAL"
    )  # rolling shutter: none
