"""Splats are drawn as gsplat draws them: compared with its projection, and with every Gaussian at every pixel."""

from __future__ import annotations

import inspect
from typing import Any

import gsplat
import pytest
import torch
from dense_splats import dense_rasterization
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from torch import Tensor

from cds_nerf.fields.gaussian_projection import covariances, project_gaussians
from cds_nerf.fields.spherical_harmonics import spherical_harmonics
from cds_nerf.fields.splat_rasterization import rasterization

WIDTH, HEIGHT = 45, 37
"""No multiples of a tile, nor of a block."""
NAMES = ("means", "quats", "scales", "opacities", "colors")


def gaussians(count: int = 60, sh_degree: int | None = 2, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Gaussians of many sizes and shapes: before, behind and beside the camera, some of them opaque."""
    generator = torch.Generator().manual_seed(3)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    bases = () if sh_degree is None else ((sh_degree + 1) ** 2,)
    values = {
        "means": uniform(-1.5, 1.5, count, 3),
        "quats": uniform(-1, 1, count, 4),
        "scales": uniform(-5, -0.7, count, 3).exp(),
        "opacities": uniform(0, 1, count),
        "colors": uniform(-0.6, 0.6, count, *bases, 3),
    }
    values["means"][: count // 10, 2] -= 3  # behind the camera
    values["opacities"][::7] = 0.9995
    values["opacities"][3::17] = 0.001
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def camera(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rotation = covariances(torch.tensor([[0.9, 0.1, -0.2, 0.05]]), torch.ones(1, 3))[0]  # the identity, to be turned
    angle = torch.tensor(0.3)
    turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    viewmat = torch.eye(4)
    viewmat[:3, :3] = turn @ rotation
    viewmat[:3, 3] = torch.tensor([0.1, -0.2, 2.0])
    intrinsics = torch.tensor([[40.0, 0, 21], [0, 43, 19], [0, 0, 1]])
    return viewmat.to(dtype), intrinsics.to(dtype)


def render(values: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    viewmat, intrinsics = camera(values["means"].dtype)
    usual: dict[str, Any] = {"packed": False, "sh_degree": 2, "render_mode": "RGB+ED", "extent": "circle"}
    return rasterization(
        **values, viewmats=viewmat[None], Ks=intrinsics[None], width=WIDTH, height=HEIGHT, **(usual | settings)
    )


def render_densely(values: dict[str, Tensor], sh_degree: int | None = 2, **settings: Any) -> tuple[Tensor, Tensor]:
    image, alpha, depth = dense_rasterization(
        *(values[name] for name in NAMES), *camera(), WIDTH, HEIGHT, sh_degree, **settings
    )
    return torch.cat([image, depth], dim=-1), alpha


@pytest.mark.parametrize("degree", range(5))
def test_spherical_harmonics_are_gsplats(degree):
    generator = torch.Generator().manual_seed(degree)
    directions = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    coefficients = torch.randn(50, 25, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        spherical_harmonics(degree, directions, coefficients), _spherical_harmonics(degree, directions, coefficients)
    )


@pytest.mark.parametrize("degree", [-1, 5])
def test_other_degrees_are_refused(degree):
    with pytest.raises(ValueError, match=str(degree)):
        spherical_harmonics(degree, torch.ones(1, 3), torch.ones(1, 36, 3))


def test_projection_and_its_gradients_are_gsplats():
    values, (viewmat, intrinsics) = gaussians(500), camera()
    own = project_gaussians(
        values["means"],
        covariances(values["quats"], values["scales"]),
        values["opacities"],
        viewmat,
        intrinsics,
        WIDTH,
        HEIGHT,
        near_plane=0.01,
        far_plane=2.5,
        radius_clip=0,
        blur=0.3,
        antialiased=True,
        extent="circle",
    )
    covars, _ = _quat_scale_to_covar_preci(values["quats"], values["scales"], compute_preci=False)
    radii, *expected = (
        value[0]
        for value in _fully_fused_projection(
            values["means"],
            covars,
            viewmat[None],
            intrinsics[None],
            WIDTH,
            HEIGHT,
            far_plane=2.5,
            calc_compensations=True,
        )
    )
    assert torch.equal(own.radii, radii[:, None].expand(-1, 2))
    seen = radii > 0
    assert 50 < seen.sum() < 450
    leaves = [values[name] for name in ("means", "quats", "scales")]
    for one, other in zip(own[1:], expected, strict=True):
        torch.testing.assert_close(one[seen], other[seen])
        weights = torch.rand(one[seen].shape, generator=torch.Generator().manual_seed(1), dtype=one.dtype)
        gradients, expected_gradients = (
            torch.autograd.grad((weights * value[seen]).sum(), leaves, retain_graph=True, materialize_grads=True)
            for value in (one, other)
        )
        torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("extent", ["circle", "box"])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("sh_degree", [None, 0, 2])
def test_image_alpha_depth_and_gradients_are_those_of_every_gaussian_at_every_pixel(sh_degree, antialiased, extent):
    values = gaussians(sh_degree=sh_degree)
    image, alpha, _ = render(
        values, sh_degree=sh_degree, rasterize_mode="antialiased" if antialiased else "classic", extent=extent
    )
    expected = render_densely(values, sh_degree, antialiased=antialiased, extent=extent)
    torch.testing.assert_close(image[0], expected[0])
    torch.testing.assert_close(alpha[0], expected[1])
    assert alpha.min() == 0
    assert alpha.max() > 0.99
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in expected]
    leaves = list(values.values())
    loss = (weights[0] * image[0]).sum() + (weights[1] * alpha[0]).sum()
    expected_loss = sum((weight * value).sum() for weight, value in zip(weights, expected, strict=True))
    for name, gradient, expected_gradient in zip(
        NAMES, torch.autograd.grad(loss, leaves), torch.autograd.grad(expected_loss, leaves), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_are_the_slopes():
    values = gaussians(12, sh_degree=1)
    leaves = [values[name].detach().requires_grad_() for name in NAMES]

    def draw(*leaves: Tensor) -> Tensor:
        return render(dict(zip(NAMES, leaves, strict=True)), sh_degree=1, render_mode="RGB+D")[0]

    # No pixel is so near to 1/255, 0.999 or 10⁻⁴, where images jump, that a step of 10⁻⁷ would cross.
    assert torch.autograd.gradcheck(draw, leaves, eps=1e-7, atol=1e-3, rtol=1e-3, fast_mode=True)


def test_float32_is_float64_to_rounding():
    double = gaussians(300)
    single = {name: value.detach().float().requires_grad_() for name, value in double.items()}
    for one, other in zip(render(single)[:2], render(double)[:2], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


def test_sums_run_through_many_blocks_without_loss(monkeypatch):
    """Pairs are drawn a few at a time, or all at once: the same to the last digits."""
    values = gaussians(300)
    expected = render(values)[0]
    monkeypatch.setattr("cds_nerf.fields.gaussian_compositing.PAIRS_AT_A_TIME", 7)
    torch.testing.assert_close(render(values)[0], expected, rtol=1e-12, atol=1e-12)


def test_packed_draws_the_same_and_gives_what_is_seen():
    values = gaussians()
    viewmat, intrinsics = camera()
    other = viewmat.clone()
    other[0, 3] += 0.5
    settings: dict[str, Any] = {
        "viewmats": torch.stack([viewmat, other]),
        "Ks": intrinsics.expand(2, 3, 3),
        "width": WIDTH,
        "height": HEIGHT,
        "sh_degree": 2,
        "render_mode": "RGB+D",
        "backgrounds": torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]], dtype=torch.float64),
        "extent": "circle",
        "absgrad": True,
    }
    packed = rasterization(**values, **settings)
    whole = rasterization(**values, **settings, packed=False)
    torch.testing.assert_close(packed[:2], whole[:2])
    torch.testing.assert_close(
        packed[0][:1], render(values, render_mode="RGB+D", backgrounds=settings["backgrounds"][:1])[0]
    )
    seen = whole[2]["radii"] > 0
    assert torch.equal(packed[2]["means2d"], whole[2]["means2d"][seen])
    assert torch.equal(
        torch.stack([packed[2]["camera_ids"], packed[2]["gaussian_ids"]]), torch.stack(seen.nonzero(as_tuple=True))
    )
    for image, _, _ in (packed, whole):
        image.square().sum().backward()
    torch.testing.assert_close(packed[2]["means2d"].absgrad, whole[2]["means2d"].absgrad[seen])


def test_background_is_behind_colours_and_not_behind_depths():
    values = gaussians()
    background = torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64)
    plain, alpha, _ = render(values)
    image, _, _ = render(values, backgrounds=background)
    torch.testing.assert_close(image[..., :3], plain[..., :3] + (1 - alpha) * background)
    assert torch.equal(image[..., 3], plain[..., 3])


def test_absolute_gradients_are_the_sums_over_pixels():
    values = gaussians(8, sh_degree=None)
    rows, columns = slice(12, 20), slice(15, 26)
    weights = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.float64)
    weights[rows, columns] = torch.randn(8, 11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    image, _, info = render(values, sh_degree=None, render_mode="RGB")
    expected = torch.zeros(8, 2, dtype=torch.float64)
    for pixel in (weights * image[0]).sum(-1)[rows, columns].flatten():
        (gradient,) = torch.autograd.grad(pixel, info["means2d"], retain_graph=True)
        expected += gradient[0].abs()
    assert (expected > 0).any()

    image, _, info = render(values, sh_degree=None, render_mode="RGB", absgrad=True)
    (weights * image[0]).sum().backward()
    torch.testing.assert_close(info["means2d"].absgrad[0], expected)


def test_gaussians_that_are_not_seen_leave_finite_gradients():
    values, (viewmat, _) = gaussians(4), camera()
    in_camera = torch.tensor([[0, 0, 0], [0.1, -0.2, -2], [1e6, 0, 3], [0, 0, 1e12]], dtype=torch.float64)
    with torch.no_grad():
        values["means"][:] = (in_camera - viewmat[:3, 3]) @ viewmat[:3, :3]
        values["scales"][1] = 0
    image, alpha, _ = render(values, rasterize_mode="antialiased")
    assert alpha.sum() == 0
    (image.sum() + alpha.sum()).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in values.values())


def test_no_gaussians_are_an_empty_image():
    image, alpha, _ = render({name: value[:0].detach() for name, value in gaussians().items()})
    assert image.shape == (1, HEIGHT, WIDTH, 4)
    assert image.abs().sum() == alpha.sum() == 0


def test_poses_have_gradients():
    """The camera optimiser's poses get the gradients that the differences have."""
    values = {name: value.detach() for name, value in gaussians(12, sh_degree=1).items()}
    viewmat, intrinsics = camera()

    def draw(viewmat: Tensor) -> Tensor:
        return rasterization(
            **values, viewmats=viewmat[None], Ks=intrinsics[None], width=WIDTH, height=HEIGHT, sh_degree=1
        )[0].sum()

    viewmat.requires_grad_()
    (gradient,) = torch.autograd.grad(draw(viewmat), viewmat)
    for row in range(3):
        step = torch.zeros(4, 4, dtype=torch.float64)
        step[row, 3] = 1e-7
        slope = (draw(viewmat + step) - draw(viewmat - step)) / 2e-7
        torch.testing.assert_close(gradient[row, 3], slope, rtol=1e-3, atol=1e-3)


def test_call_is_gsplats():
    """Whatever the installed gsplat takes, in its order; gsplat 1.5 moves `covars` behind one more."""
    own = list(inspect.signature(rasterization).parameters)
    theirs = list(inspect.signature(gsplat.rasterization).parameters)
    assert own[:24] == theirs[:24]
    assert set(theirs) <= {*own, "with_ut", "with_eval3d"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"camera_model": "fisheye"}, "fisheye"),
        ({"with_ut": True}, "with_ut"),
        ({"sparse_grad": True}, "sparse_grad"),
        ({"distributed": True}, "distributed"),
        ({"radial_coeffs": torch.zeros(1, 6)}, "radial_coeffs"),
    ],
)
def test_what_plain_torch_has_not_is_refused_by_name(settings, name):
    with pytest.raises(NotImplementedError, match=name):
        render(gaussians(), **settings)


def test_calls_of_gsplat_1_5_are_understood():
    """Its densification strategies ask for two radii, and its call has arguments that mean nothing here."""
    values = gaussians()
    call = {"segmented": True, "with_ut": False, "with_eval3d": False, "radial_coeffs": None, "viewmats_rs": None}
    image, _, info = render(values, extent="box", **call)
    torch.testing.assert_close(image, render(values, extent="box")[0])
    assert info["radii"].shape == (1, len(values["means"]), 2)
