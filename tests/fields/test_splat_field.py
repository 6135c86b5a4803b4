"""A splat field draws what splatfacto draws in evaluation, also in training, and its colours can leave their ends."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from small_edit import write_capture

from cds_nerf.fields.ray_rendering import rescale_camera
from cds_nerf.fields.saturation import clamp_with_way_back
from cds_nerf.fields.splat_field import LOADED_STEP, SplatField
from cds_nerf.fields.undistortion import undistorted
from cds_nerf.nerf import compatibility

compatibility.apply()
BOX = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))


def model_of(**settings: object) -> SplatfactoModel:
    torch.manual_seed(0)
    usual = {"num_random": 40, "random_scale": 1.0}
    model = SplatfactoModelConfig(**(usual | settings)).setup(scene_box=BOX, num_train_data=3)
    with torch.no_grad():
        model.features_rest.normal_(0, 0.2)
        model.opacities.normal_(1, 1)
        model.scales.normal_(-2.5, 0.5)
    model.step = LOADED_STEP
    return model


def camera() -> Cameras:
    pose = torch.tensor([[1.0, 0, 0, 0.1], [0, 1, 0, -0.1], [0, 0, 1, 2]])
    return Cameras(
        camera_to_worlds=pose[None],
        fx=30.0,
        fy=31.0,
        cx=20.0,
        cy=15.0,
        width=41,
        height=30,
        camera_type=CameraType.PERSPECTIVE,
    )


@pytest.mark.parametrize("background", ["random", "black", "white"])
@pytest.mark.parametrize("settings", [{"sh_degree": 0}, {"sh_degree": 3}, {"rasterize_mode": "antialiased"}])
def test_frames_are_splatfactos(settings, background):
    model = model_of(background_color=background, **settings)
    field = SplatField(model)
    outputs = model.eval().get_outputs_for_camera(camera())
    torch.testing.assert_close(field.render_frame(camera()), outputs["rgb"].permute(2, 0, 1))
    finer = camera()
    finer.rescale_output_resolution(4)
    depth = model.get_outputs_for_camera(finer)["depth"]
    distance = depth * finer.generate_rays(0, keep_shape=True).metadata["directions_norm"]
    averaged = distance.reshape(30, 4, 41, 4).mean(dim=(1, 3))
    torch.testing.assert_close(field.render_distance(camera()), averaged)


def test_distance_is_that_of_the_surface_in_a_small_image_too():
    """A wall behind a few specks, each far smaller than one of the image's pixels."""
    model = model_of(num_random=4000, sh_degree=0)
    with torch.no_grad():
        model.means.copy_(torch.rand_like(model.means) * 4 - 2)
        model.means[:, 2] = 0
        model.means[:60, 2] = 1
        model.scales.fill_(-3)
        model.scales[:60] = -5
        model.opacities.fill_(4)
    small = camera()
    small.rescale_output_resolution(1 / 8)
    rays = small.generate_rays(0, keep_shape=True)
    wall = -rays.origins[..., 2] / rays.directions[..., 2]
    distance = SplatField(model).render_distance(small)
    assert (distance / wall).mean() > 0.95  # drawn at the image's own size: 0.82


def test_training_views_are_splatfactos_at_full_size_on_one_background():
    """With poses and bilateral grids; and the camera stays as it was given."""
    model = model_of(background_color="white", use_bilateral_grid=True)
    model.camera_optimizer.config.mode = "SO3xR3"
    model.camera_optimizer.pose_adjustment = torch.nn.Parameter(0.02 * torch.randn(3, 6))
    with torch.no_grad():
        model.bil_grids.grids.add_(0.1 * torch.randn_like(model.bil_grids.grids))
    given = camera()
    image, losses = SplatField(model).render_view(given, 2, seed=0)
    assert losses == {}
    assert given.metadata is None
    assert (int(given.width), float(given.fx)) == (41, 30)

    theirs = camera()
    theirs.metadata = {"cam_idx": 2}
    model.train()
    model.optimizers = {}
    expected = model.get_outputs(theirs)["rgb"].permute(2, 0, 1)
    torch.testing.assert_close(image, expected)
    plain, _ = SplatField(model).render_view(given, 1, seed=0)
    assert not torch.allclose(plain, image, atol=1e-3)


def test_gradients_are_splatfactos_where_no_colour_is_at_its_end():
    model = model_of(background_color="white", sh_degree=1)
    with torch.no_grad():
        model.features_dc.mul_(0.3)
        model.features_rest.mul_(0.1)
    weights = torch.randn(3, 30, 41, generator=torch.Generator().manual_seed(0))
    parameters = list(model.gauss_params.values())
    image, _ = SplatField(model).render_view(camera(), 0, seed=0)
    gradients = torch.autograd.grad((weights * image).sum(), parameters)
    expected = model.eval().get_outputs(camera())["rgb"].permute(2, 0, 1)
    for one, other in zip(gradients, torch.autograd.grad((weights * expected).sum(), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("sh_degree", [0, 2])
def test_black_and_bright_gaussians_can_change(sh_degree):
    """Channels that training has left below 0 come back when the edit asks for more of them."""
    model = model_of(sh_degree=sh_degree, background_color="black")
    with torch.no_grad():
        model.features_dc.fill_(-4.0 if sh_degree else -8.0)
    image, _ = SplatField(model).render_view(camera(), 0, seed=0)
    assert image.max() < 0.01
    (-image.sum()).backward()
    brighter = model.features_dc.grad
    assert (brighter < 0).sum() > 60
    model.zero_grad()
    image, _ = SplatField(model).render_view(camera(), 0, seed=0)
    image.sum().backward()
    if sh_degree:
        assert model.features_dc.grad.abs().max() == 0  # no farther below


def test_clamp_passes_what_leads_back():
    values = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    for sign, expected in ((1, [0, 1, 1]), (-1, [-1, -1, 0])):
        clamped = clamp_with_way_back(values, 0, 1)
        assert clamped.tolist() == [0, 0.5, 1]
        (gradient,) = torch.autograd.grad(sign * clamped.sum(), values)
        assert gradient.tolist() == expected


def data_manager(folder: Path):
    config = FullImageDatamanagerConfig(
        data=folder, dataparser=NerfstudioDataParserConfig(load_3D_points=False), cache_images="gpu"
    )
    return config.setup(device="cpu", test_mode="test")


@pytest.mark.parametrize("camera_model", ["OPENCV", "OPENCV_FISHEYE"])
def test_undistorted_cameras_are_those_of_the_undistorted_photographs(tmp_path, camera_model):
    manager = data_manager(write_capture(tmp_path, camera_model=camera_model))
    given = deepcopy(manager.train_dataset.cameras)
    own = undistorted(given)
    assert torch.equal(given.fx, manager.train_dataset.cameras.fx)
    sizes = [photograph["image"].shape[:2] for photograph in manager.cached_train]
    expected = manager.train_dataset.cameras
    assert not torch.equal(expected.fx, given.fx)
    for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_to_worlds"):
        torch.testing.assert_close(getattr(own, name), getattr(expected, name))
    assert [(int(one.height), int(one.width)) for one in own] == sizes
    view = rescale_camera(own[1:2], 16, 8)
    assert min(int(view.width), int(view.height)) == 16


def test_as_many_gaussians_are_made_as_the_checkpoint_has():
    model, source = model_of(), model_of(num_random=25)
    kept = dict(model.gauss_params)
    field = SplatField(model)
    field.prepare_to_load(5, model.state_dict())
    assert all(model.gauss_params[name] is parameter for name, parameter in kept.items())
    field.prepare_to_load(5, source.state_dict())
    assert model.num_points == 25
    torch.nn.Module.load_state_dict(model, source.state_dict())
    torch.testing.assert_close(field.render_frame(camera()), SplatField(source).render_frame(camera()))
    assert splatfacto.rasterization is not None


def test_anchor_holds_what_is_outside_and_leaves_free_what_is_inside():
    source, field = SplatField(model_of()), SplatField(model_of())
    left = torch.zeros(1, 30, 41)
    left[..., :20] = 1  # relevant

    def loss() -> float:
        value = field.anchor_loss(lambda: source, camera(), left)
        assert value is not None
        return value.item()

    assert loss() == 0
    camera_x = field.model.means[:, 0] - 0.1
    depth = 2 - field.model.means[:, 2]
    on_the_left = camera_x / depth * 30 + 20 < 19
    with torch.no_grad():
        field.model.means[on_the_left] += 0.01
        field.model.opacities[on_the_left] -= 1
        assert loss() < 1e-6
        field.model.opacities[~on_the_left] += 0.5
        assert loss() == pytest.approx(0.25 * int((~on_the_left).sum()), rel=0.2)  # those on the border half
        field.model.features_dc.zero_()  # colours are held by what is seen
        before = loss()
        field.model.scales[~on_the_left] += 1
    assert loss() == pytest.approx(before + 3 * int((~on_the_left).sum()), rel=0.2)
