"""The orbit of the before/after video shows what the capture shows, from where the capture saw it."""

from __future__ import annotations

import math

import pytest
import torch
from nerfstudio.cameras.camera_utils import viewmatrix
from nerfstudio.cameras.cameras import Cameras

from cds_nerf.fields.orbit import orbit_cameras, viewed_point

POINT = torch.tensor([0.2, -0.1, 0.3])


def cameras_around(azimuths: torch.Tensor, radius: float = 1.5, height: float = 0.7) -> Cameras:
    positions = POINT + torch.stack(
        [radius * azimuths.cos(), radius * azimuths.sin(), torch.full_like(azimuths, height)], dim=1
    )
    poses = torch.stack([viewmatrix(p - POINT, torch.tensor([0.0, 0.0, 1.0]), p)[:3] for p in positions])
    return Cameras(poses, fx=30.0, fy=30.0, cx=15.0, cy=10.0, width=30, height=20, distortion_params=torch.ones(6))


def azimuth(camera: Cameras) -> float:
    offset = camera.camera_to_worlds[0, :3, 3] - POINT
    return float(torch.atan2(offset[1], offset[0]))


def test_viewed_point_is_where_the_axes_meet():
    torch.testing.assert_close(viewed_point(cameras_around(torch.arange(0, 6, 0.5))), POINT, atol=0.02, rtol=0)


def test_parallel_axes_give_a_point_in_front_of_the_cameras():
    cameras = cameras_around(torch.zeros(3))
    cameras.camera_to_worlds[:, :3, 3] += torch.tensor([[0.0, -0.1, 0.0], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
    towards = viewed_point(cameras) - cameras.camera_to_worlds[1, :3, 3]
    assert float(towards @ -cameras.camera_to_worlds[1, :3, 2]) > 0.5


def test_cameras_all_around_give_a_full_circle():
    training = cameras_around(torch.arange(12) / 12 * 2 * math.pi)
    orbit = orbit_cameras(training, training[0:1], 8)
    angles = torch.tensor([azimuth(camera) for camera in orbit])
    steps = (angles - angles.roll(1)) % (2 * math.pi)
    torch.testing.assert_close(steps, torch.full((8,), math.pi / 4), atol=0.03, rtol=0)


def test_orbit_stays_within_the_arc_that_the_capture_covers():
    training = cameras_around(torch.linspace(2.5, 4.0, 10))  # across the jump of atan2 at pi
    orbit = orbit_cameras(training, training[0:1], 20)
    angles = torch.tensor([azimuth(camera) for camera in orbit]) % (2 * math.pi)
    assert angles.min() > 2.4 and angles.max() < 4.1
    assert angles.max() - angles.min() > 1.3
    assert abs(float(angles[0] - angles[-1])) < 0.2  # to and fro


def test_orbit_looks_at_the_point_from_the_captures_distance_without_distortion():
    training = cameras_around(torch.linspace(0, 1, 5))
    for camera in orbit_cameras(training, training[0:1], 4):
        pose = camera.camera_to_worlds[0]
        assert float((pose[:, 3] - POINT)[:2].norm()) == pytest.approx(1.5, abs=0.03)
        towards = torch.nn.functional.normalize(POINT - pose[:, 3], dim=0)
        torch.testing.assert_close(-pose[:, 2], towards, atol=0.03, rtol=0)
        torch.testing.assert_close(pose[:, :3].T @ pose[:, :3], torch.eye(3), atol=1e-5, rtol=0)
        assert float(torch.linalg.det(pose[:, :3])) == pytest.approx(1, abs=1e-5)
        assert camera.distortion_params is None
        assert (int(camera.width), int(camera.height)) == (30, 20)


def test_no_frames_give_no_orbit():
    training = cameras_around(torch.linspace(0, 1, 5))
    assert orbit_cameras(training, training[0:1], 0) == []
