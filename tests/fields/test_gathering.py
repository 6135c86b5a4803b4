"""What views say of a scene is gathered in three dimensions."""

import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from cds_nerf.fields.gathering import SeenMap, gather, project

SIDE = 24


def camera(position, target=(0.0, 0.0, 0.0), kind=CameraType.PERSPECTIVE, distortion=None):
    position, target = torch.tensor(position), torch.tensor(target)
    backward = torch.nn.functional.normalize(position - target, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.1, 0.2, 1.0]), backward), dim=0)
    pose = torch.stack([right, torch.linalg.cross(backward, right), backward, position], dim=1)
    return Cameras(
        camera_to_worlds=pose[None],
        fx=30.0,
        fy=31.0,
        cx=SIDE / 2 + 1,
        cy=SIDE / 2 - 0.5,
        width=SIDE,
        height=SIDE,
        distortion_params=None if distortion is None else torch.tensor([distortion]),
        camera_type=kind,
    )


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
@pytest.mark.parametrize("distortion", [None, [0.05, -0.02, 0.003, -0.001, 0.004, -0.003]])
def test_points_along_rays_project_to_the_pixels_of_the_rays(kind, distortion):
    one = camera((2.0, 1.0, 1.5), kind=kind, distortion=distortion)
    rays = one.generate_rays(0, keep_shape=True)
    pixels, in_front = project(one, rays.origins + 1.7 * rays.directions)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    assert torch.allclose(pixels, torch.stack([x, y], dim=-1), atol=2e-2)
    assert in_front.all()
    assert not project(one, rays.origins - rays.directions)[1].any()


def ball_view(position, radius=0.5):
    """How far a camera sees, of a ball before a sphere of radius 6 around it; and where the ball is."""
    one = camera(position)
    rays = one.generate_rays(0, keep_shape=True)
    along = (rays.origins * rays.directions).sum(dim=-1)
    squared = rays.origins.square().sum(dim=-1)
    discriminant = along.square() - squared + radius**2
    ball = discriminant > 0
    distance = torch.where(
        ball, -along - discriminant.clamp(min=0).sqrt(), -along + (along.square() - squared + 36).sqrt()
    )
    return one, distance, ball


POSITIONS = [(3 * math.cos(2.4 * index), 3 * math.sin(2.4 * index), 0.3 + 1.2 * (index % 4) / 3) for index in range(16)]


def test_what_all_views_say_of_an_object_is_said_by_a_view_that_said_nothing():
    views = [ball_view(position) for position in POSITIONS]
    seen = [SeenMap(one, distance, ball.float()) for one, distance, ball in views]
    new, distance, ball = ball_view((-2.0, -2.0, 1.0))
    gathered = gather(new, distance, seen, nearest=0.5) > 0.7
    assert (gathered & ball).sum() / (gathered | ball).sum() > 0.75


def test_what_a_single_view_says_is_outvoted():
    views = [ball_view(position) for position in POSITIONS]
    seen = [SeenMap(one, distance, torch.zeros(SIDE, SIDE)) for one, distance, _ in views]
    seen[0] = SeenMap(views[0][0], views[0][1], torch.ones(SIDE, SIDE))
    assert gather(*views[0][:2], seen, nearest=0.5).max() < 0.5


def test_object_may_grow_into_free_space_that_the_views_agree_on():
    views = [(*ball_view(position)[:2], ball_view(position, radius=0.8)[2]) for position in POSITIONS]
    seen = [SeenMap(one, distance, grown.float()) for one, distance, grown in views]
    new, distance, ball = ball_view((-2.0, -2.0, 1.0))
    _, _, grown = ball_view((-2.0, -2.0, 1.0), radius=0.8)
    gathered = gather(new, distance, seen, nearest=0.5) > 0.7
    assert (gathered & grown).sum() / (gathered | grown).sum() > 0.75
    assert gathered.sum() > 1.5 * ball.sum()


def test_pixel_whose_ray_no_view_sees_says_nothing():
    away = camera((3.0, 0.0, 0.3), target=(9.0, 0.0, 0.3))
    seen = [SeenMap(*ball_view(position)[:2], torch.ones(SIDE, SIDE)) for position in POSITIONS[:3]]
    assert gather(away, torch.full((SIDE, SIDE), 3.0), seen, nearest=0.5).max() == 0
