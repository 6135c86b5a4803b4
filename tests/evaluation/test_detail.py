"""How much of a pattern an edit keeps, on the true edit and on what keeps nothing."""

import math
import random
from dataclasses import replace

import pytest
import torch

from cds_nerf.evaluation.detail import detail_kept
from cds_nerf.shapes.render import look_at_pose, render
from cds_nerf.shapes.scene import PATTERNS, Detail, Scene

POSES = torch.stack([look_at_pose(azimuth, math.radians(30)) for azimuth in (0.3, 2.0, 4.5)])


@pytest.fixture(params=PATTERNS)
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene("blue", "sphere", "wooden", detail=replace(Detail.draw(random.Random(0)), pattern=request.param))


def test_the_truth_keeps_all_and_a_plain_object_nothing(scene: Scene) -> None:
    (truth, masks), (plain, _) = (render(one, POSES, 64) for one in (scene, replace(scene, detail=None)))
    assert detail_kept(truth, truth, plain, masks).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert detail_kept(plain, truth, plain, masks).tolist() == [0.0] * 3
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    assert detail_kept(noise, truth, plain, masks).abs().max() < 0.15


def test_neither_colour_nor_lighting_count(scene: Scene) -> None:
    (truth, masks), (plain, _) = (render(one, POSES, 64) for one in (scene, replace(scene, detail=None)))
    red, _ = render(replace(scene, color="red"), POSES, 64)
    assert (detail_kept(red, truth, plain, masks) > 0.98).all()
    assert (detail_kept(0.5 * truth, truth, plain, masks) > 0.999).all()


def test_a_pattern_that_has_turned_is_not_kept(scene: Scene) -> None:
    (truth, masks), (plain, _) = (render(one, POSES, 64) for one in (scene, replace(scene, detail=None)))
    assert scene.detail is not None
    half = tuple(phase + 0.5 for phase in scene.detail.phase)
    turned, _ = render(replace(scene, detail=replace(scene.detail, phase=half)), POSES, 64)
    assert (detail_kept(turned, truth, plain, masks) < 0.1).all()


def test_a_view_without_a_pattern_says_nothing() -> None:
    plain, masks = render(Scene("blue", "sphere", "wooden"), POSES, 32)
    assert detail_kept(plain, plain, plain, masks).isnan().all()
