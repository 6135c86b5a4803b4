"""Where the object is in a picture, and how much of that an edit of its shape gets right."""

import math
from dataclasses import replace

import pytest
import torch

from cds_nerf.evaluation.silhouette import silhouette, silhouette_overlap
from cds_nerf.shapes.render import look_at_pose, render
from cds_nerf.shapes.scene import Scene

POSES = torch.stack([look_at_pose(azimuth, math.radians(30)) for azimuth in (0.3, 2.0, 4.5)])
CUBE = Scene("red", "cube", "wooden")


@pytest.mark.parametrize(("color", "floor"), [("red", "wooden"), ("blue", "checkered"), ("green", "gray")])
def test_a_silhouette_is_the_object_and_not_its_shadow(color: str, floor: str) -> None:
    scene = Scene(color, "cube", floor)
    (views, masks), (empty, _) = (render(one, POSES, 64) for one in (scene, scene.without_object))
    found = silhouette(views, empty)
    assert not found[masks == 0].any()
    assert found[masks == 1].float().mean() > 0.97
    darkest = ((views - empty) * (masks == 0)).amin()
    assert darkest < -0.2  # there is a shadow


def test_the_true_shape_overlaps_wholly_another_less_and_no_object_not_at_all() -> None:
    sphere = replace(CUBE, shape="sphere")
    (truth, masks), (cube, _), (empty, _) = (render(one, POSES, 64) for one in (sphere, CUBE, CUBE.without_object))
    assert silhouette_overlap(truth, truth, empty, masks).tolist() == [1.0] * 3
    overlap = silhouette_overlap(cube, truth, empty, masks)
    assert ((overlap > 0.6) & (overlap < 0.9)).all()
    assert silhouette_overlap(empty, truth, empty, masks).tolist() == [0.0] * 3
    blue, _ = render(replace(sphere, color="blue"), POSES, 64)
    assert (silhouette_overlap(blue, truth, empty, masks) > 0.95).all()  # a colour is no shape


def test_an_object_that_hardly_stands_out_says_nothing() -> None:
    white = Scene("white", "sphere", "gray")
    (truth, masks), (empty, _) = (render(one, POSES, 64) for one in (white, white.without_object))
    overlap = silhouette_overlap(truth, truth, empty, masks)
    assert overlap.isnan().all()
    assert silhouette_overlap(truth, truth, empty, torch.zeros_like(masks)).isnan().all()
