"""A view rendered in the memory of one chunk has the colours and the gradients of one rendered whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss
from nerfstudio.utils.eval_utils import eval_setup
from torch import nn

from cds_nerf.fields.ray_rendering import camera_rays, render_rays, rescale_camera
from cds_nerf.nerf.compatibility import update_proposals_in_every_call


@pytest.fixture
def pipeline(source_run):
    _, pipeline, _, _ = eval_setup(source_run / "config.yml", test_mode="inference")
    pipeline.train()
    update_proposals_in_every_call(pipeline.model)
    return pipeline


def without_jitter(model: nn.Module) -> None:
    """Sampling that does not depend on how rays are grouped into chunks."""
    for sampler in (model.proposal_sampler.initial_sampler, model.proposal_sampler.pdf_sampler):
        sampler.train_stratified = False


@pytest.mark.parametrize("rays_per_chunk", [7, 64, 10_000])
def test_chunks_give_the_image_and_gradients_of_the_whole(pipeline, rays_per_chunk):
    model = pipeline.model
    without_jitter(model)
    camera = rescale_camera(pipeline.datamanager.train_dataset.cameras[2:3], 8, 4)
    weights = torch.randn(3, int(camera.height), int(camera.width), generator=torch.Generator().manual_seed(0))

    def gradients(chunk: int, checkpointing: bool) -> list[torch.Tensor]:
        model.zero_grad()
        image, regularisers = render_rays(model, camera_rays(camera, 2), chunk, checkpointing)
        ((weights * image).sum() + 1000 * sum(regularisers.values())).backward()
        return [image.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = gradients(10**6, checkpointing=False)
    chunked = gradients(rays_per_chunk, checkpointing=True)
    assert len(whole) == len(chunked) > 10
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_proposal_networks_get_the_same_gradient_in_every_chunk_of_every_step(pipeline):
    model = pipeline.model
    without_jitter(model)
    camera = rescale_camera(pipeline.datamanager.train_dataset.cameras[0:1], 8, 4)
    model.field.average_init_density *= 1000  # so that the proposal networks have something to follow
    gradients = []
    for step in range(3):
        model.zero_grad()
        model.proposal_sampler.step_cb(step=10**6 + step)
        _, regularisers = render_rays(model, camera_rays(camera, 0), 50)
        regularisers["interlevel_loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.proposal_networks.parameters()]))
    assert gradients[0].norm() > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_regularisers_are_the_models_own_losses_over_all_rays(pipeline):
    model = pipeline.model
    without_jitter(model)
    camera = rescale_camera(pipeline.datamanager.train_dataset.cameras[0:1], 8, 4)
    outputs = model(camera_rays(camera, 0).flatten())
    _, regularisers = render_rays(model, camera_rays(camera, 0), 13)
    config, weights, samples = model.config, outputs["weights_list"], outputs["ray_samples_list"]
    expected = {
        "interlevel_loss": config.interlevel_loss_mult * interlevel_loss(weights, samples),
        "distortion_loss": config.distortion_loss_mult * distortion_loss(weights, samples),
    }
    for name, value in expected.items():
        torch.testing.assert_close(regularisers[name], value)


def test_any_model_that_renders_rays_can_be_edited():
    class Sky(nn.Module):
        device = "cpu"

        def forward(self, rays):
            return {"rgb": rays.directions.abs()}

    camera = Cameras(torch.eye(4)[None, :3], fx=8.0, fy=8.0, cx=4.0, cy=2.0, width=8, height=4)
    image, regularisers = render_rays(Sky(), camera_rays(camera, 0), 5)
    assert image.shape == (3, 4, 8)
    assert regularisers == {}
    torch.testing.assert_close(image.permute(1, 2, 0), camera_rays(camera, 0).directions.abs())


class TwoPasses(nn.Module):
    """As NeRF's and mip-NeRF's models have them, with a distance's gradient as NeuS' have it."""

    device = "cpu"
    config = SimpleNamespace(loss_coefficients={"rgb_loss_coarse": 0.1}, eikonal_loss_mult=0.2)

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Parameter(torch.tensor(0.2)), nn.Parameter(torch.tensor(0.7))

    def forward(self, rays):
        directions = rays.directions.abs()
        return {
            "rgb_coarse": self.coarse * directions,
            "rgb_fine": self.fine * directions,
            "eik_grad": 3 * rays.directions[:, None],
        }


def test_fine_pass_is_edited_and_the_coarse_one_follows_it():
    model = TwoPasses()
    camera = Cameras(torch.eye(4)[None, :3], fx=8.0, fy=8.0, cx=4.0, cy=2.0, width=8, height=4)
    directions = camera_rays(camera, 0).directions
    image, regularisers = render_rays(model, camera_rays(camera, 0), 5)
    torch.testing.assert_close(image.permute(1, 2, 0), 0.7 * directions.abs())
    torch.testing.assert_close(regularisers["coarse_loss"], 0.1 * (0.5 * directions).square().mean())
    torch.testing.assert_close(regularisers["eikonal_loss"], torch.tensor(0.2 * (3 - 1) ** 2))
    regularisers["coarse_loss"].backward()
    assert model.coarse.grad < 0 and model.fine.grad is None


@pytest.mark.parametrize(
    ("size", "shorter_side", "expected"),
    [((1080, 1920), 512, (512, 912)), ((480, 270), 64, (112, 64)), ((32, 32), 64, (64, 64)), ((1000, 10), 8, (800, 8))],
)
def test_rescaled_camera_has_the_shorter_side_and_a_rounded_longer_one(size, shorter_side, expected):
    width, height = size
    camera = Cameras(torch.eye(4)[None, :3], fx=50.0, fy=60.0, cx=11.0, cy=12.0, width=width, height=height)
    rescaled = rescale_camera(camera, shorter_side, 8)
    assert (int(rescaled.width), int(rescaled.height)) == expected
    assert (int(camera.width), int(camera.height)) == size


@pytest.mark.parametrize("view", [0, 5])
def test_distorted_camera_sees_the_same_at_another_size(pipeline, view):
    """Each frame has its own focal lengths, principal point and lens distortion."""
    camera = pipeline.datamanager.train_dataset.cameras[view : view + 1]
    assert camera.distortion_params.abs().sum() > 0
    rescaled = rescale_camera(camera, 3 * int(camera.height), 4)
    rays, larger = camera_rays(camera, view), camera_rays(rescaled, view)
    middles = larger.directions[1::3, 1::3]  # of each 3x3 block, the pixel whose centre is the original's
    torch.testing.assert_close(middles, rays.directions, rtol=0, atol=2e-5)
    assert (larger.camera_indices == view).all()
    straight = rescale_camera(camera, 3 * int(camera.height), 4)
    straight.distortion_params = None
    assert (camera_rays(straight, view).directions - larger.directions).abs().max() > 1e-3
