"""Views of one scene are consistent, and views of two are not: on a textured plane whose views are known exactly."""

import math

import pytest
import torch

from cds_nerf.evaluation.consistency import PosedView, neighbours, warp_error

SIZE, FOCAL = 64, 80.0


def texture(points):
    """A smooth pattern on the plane z = 0, with another one around the origin if that is asked for."""
    x, y = points[..., 0], points[..., 1]
    return torch.stack([0.5 + 0.4 * torch.sin(2 * x), 0.5 + 0.4 * torch.cos(3 * y), 0.5 + 0.3 * torch.sin(x + y)])


def plane_view(x, y, height, shade=0.0):
    """What a camera above the plane z = 0 sees that looks straight down."""
    pose = torch.tensor([[1.0, 0, 0, x], [0, 1, 0, y], [0, 0, 1, height]])
    flat = torch.zeros(SIZE, SIZE)
    view = PosedView(torch.zeros(3, SIZE, SIZE), flat, pose, (FOCAL, FOCAL), (SIZE / 2, SIZE / 2))
    directions = PosedView(view.image, flat + 1, pose, view.focal, view.centre).points() - pose[:, 3]
    distance = -height / directions[..., 2]
    points = pose[:, 3] + distance[..., None] * directions
    assert points[..., 2].abs().max() < 1e-5
    return PosedView((texture(points) + shade).clamp(0, 1), distance, pose, view.focal, view.centre)


def test_points_project_to_the_pixels_that_they_come_from():
    view = plane_view(0.3, -0.2, 2.0)
    xy, depth, distance = view.project(view.points())
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    assert torch.allclose(xy, torch.stack([x, y], dim=-1), atol=1e-3)
    assert torch.allclose(depth, torch.full_like(depth, 2.0), atol=1e-4)
    assert torch.allclose(distance, view.distance, atol=1e-4)


def test_views_of_one_scene_are_consistent():
    error, share = warp_error(plane_view(0.0, 0.0, 2.0), plane_view(0.3, 0.1, 2.3))
    assert error < 2e-3
    assert 0.7 < share <= 1


def test_error_is_what_the_neighbour_differs_by():
    error, _ = warp_error(plane_view(0.0, 0.0, 2.0), plane_view(0.3, 0.1, 2.3, shade=0.1))
    assert error == pytest.approx(0.1, rel=0.03)


def test_what_the_neighbour_does_not_see_does_not_count():
    view, neighbour = plane_view(0.0, 0.0, 2.0), plane_view(0.2, 0.0, 2.0, shade=0.1)
    hidden = neighbour.distance.clone()
    hidden[:, : SIZE // 2] = 0.5  # something stands before the left half
    error, share = warp_error(view, PosedView(neighbour.image, hidden, neighbour.camera_to_world, (80, 80), (32, 32)))
    assert error == pytest.approx(0.1, rel=0.03)
    assert share == pytest.approx((SIZE // 2 - 8) / SIZE)  # the neighbour sees all 8 pixels further to the left
    error, share = warp_error(view, plane_view(50.0, 0.0, 2.0))
    assert math.isnan(error) and share == 0


def test_neighbour_is_the_nearest_other_camera():
    assert neighbours([plane_view(x, 0.0, 2.0) for x in (0.0, 3.0, 1.0, 2.9)]) == [2, 3, 0, 1]
