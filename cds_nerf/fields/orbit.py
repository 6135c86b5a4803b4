"""An orbit of cameras around what the training cameras look at, within the angle that they cover."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

FULL_CIRCLE_GAP = math.radians(60)
"""Cameras that leave no gap wider than this in azimuth cover the full circle."""


def orbit_cameras(training: Cameras, like: Cameras, frames: int) -> list[Cameras]:
    """Cameras on an orbit: once around where the training cameras stand all around, else to and fro along their arc.

    Args:
        training: the training cameras [N]; z is up, as nerfstudio orients its scenes.
        like: a camera [1] that gives the size and the focal lengths.
        frames: how many.

    Returns:
        Cameras [1] without lens distortion, which look at the point nearest to all training cameras' axes from their
        median distance and height.
    """
    centre = viewed_point(training)
    offsets = training.camera_to_worlds[:, :3, 3] - centre
    radius, height = offsets[:, :2].norm(dim=1).median(), offsets[:, 2].median()
    azimuths = torch.atan2(offsets[:, 1], offsets[:, 0]).sort().values
    gaps = torch.cat([azimuths[1:], azimuths[:1] + 2 * math.pi]) - azimuths
    widest = int(gaps.argmax())
    start, span = azimuths[(widest + 1) % len(azimuths)], 2 * math.pi - gaps[widest]
    progress = torch.arange(frames) / max(frames, 1)
    if gaps[widest] > FULL_CIRCLE_GAP:
        angles = start + span * (0.5 - 0.5 * torch.cos(2 * math.pi * progress))
    else:
        angles = start + 2 * math.pi * progress
    positions = centre + torch.stack([radius * angles.cos(), radius * angles.sin(), height.expand_as(angles)], dim=1)
    return [
        Cameras(
            camera_to_worlds=_looking_at(position, centre)[None],
            fx=like.fx,
            fy=like.fy,
            cx=like.width / 2,
            cy=like.height / 2,
            width=like.width,
            height=like.height,
            camera_type=CameraType.PERSPECTIVE,
        )
        for position in positions
    ]


def viewed_point(cameras: Cameras) -> Float[Tensor, 3]:
    """The point nearest to all cameras' optical axes, in least squares.

    Parallel axes have no such point: a small pull towards a point in front of the average camera decides there.
    """
    positions, axes = cameras.camera_to_worlds[:, :3, 3], -cameras.camera_to_worlds[:, :3, 2]
    across = torch.eye(3) - axes[:, :, None] * axes[:, None, :]  # removes what lies along the axis
    pull = 0.01 * torch.eye(3)
    in_front = (positions + axes).mean(dim=0)
    return torch.linalg.solve(
        across.mean(dim=0) + pull, (across @ positions[:, :, None]).mean(dim=0)[:, 0] + pull @ in_front
    )


def viewed_distance(cameras: Cameras) -> float:
    """The cameras' median distance from the point that they look at."""
    return float((cameras.camera_to_worlds[:, :3, 3] - viewed_point(cameras)).norm(dim=1).median())


def _looking_at(position: Float[Tensor, 3], point: Float[Tensor, 3]) -> Float[Tensor, "3 4"]:
    backward = torch.nn.functional.normalize(position - point, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), backward), dim=0)
    return torch.stack([right, torch.linalg.cross(backward, right), backward, position], dim=1)
