import math
import random
from dataclasses import replace

import pytest
import torch

from cds_nerf.shapes.render import FIELD_OF_VIEW, LOOK_AT, focal_length, look_at_pose, render
from cds_nerf.shapes.scene import COLORS, PATTERNS, SHAPES, Detail, Scene, vary

POSES = torch.stack([look_at_pose(azimuth, math.radians(30)) for azimuth in (0.3, 2.0, 4.5)])


@pytest.mark.parametrize("shape", SHAPES)
def test_object_has_its_colour_and_the_floor_has_not(shape: str) -> None:
    images, masks = render(Scene("blue", shape, "gray"), POSES, 32)
    assert images.shape == (3, 3, 32, 32) and masks.shape == (3, 1, 32, 32)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    for image, mask in zip(images, masks, strict=True):
        inside = image[:, mask[0] == 1].mean(dim=1)
        assert inside.argmax() == 2 and inside[2] > 2 * inside[0]
        outside = image[:, mask[0] == 0]
        assert (outside.amax(dim=0) - outside.amin(dim=0)).max() < 0.05  # grey


def test_mask_is_the_silhouette_of_a_sphere() -> None:
    """Rendered area against the exact one: a sphere's silhouette is an ellipse of known axes."""
    size, radius = 128, 0.58
    pose = look_at_pose(1.0, math.radians(30))
    _, mask = render(Scene("red", "sphere", "gray"), pose[None], size)
    offset = torch.tensor([0.0, 0.0, radius]) - pose[:, 3]
    distance = float(offset.norm())
    forward = float(-pose[:, 2] @ offset)
    half_angle = math.asin(radius / distance)
    tilt = math.acos(forward / distance)
    # The cone of rays that touch the sphere, cut by the image plane at distance 1.
    major = (math.tan(tilt + half_angle) - math.tan(tilt - half_angle)) / 2
    minor = math.sin(half_angle) / math.sqrt(math.cos(half_angle) ** 2 - math.sin(tilt) ** 2)
    expected = math.pi * major * minor * focal_length(size) ** 2
    assert mask.sum().item() == pytest.approx(expected, rel=0.01)


def test_camera_looks_at_the_object_with_its_field_of_view() -> None:
    pose = look_at_pose(0.7, 0.4, distance=5.0)
    assert torch.allclose(pose[:, :3].T @ pose[:, :3], torch.eye(3), atol=1e-6)
    assert torch.linalg.det(pose[:, :3]) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(pose[:, 3] - 5.0 * pose[:, 2], torch.tensor(LOOK_AT), atol=1e-5)
    assert 2 * math.atan(50 / focal_length(100)) == pytest.approx(FIELD_OF_VIEW)


def test_resolutions_show_the_same_picture() -> None:
    scene = vary(Scene("yellow", "cone", "wooden"), random.Random(1))
    small, large = (render(scene, POSES[:1], size)[0] for size in (32, 128))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.01


def test_colour_edit_changes_the_object_alone() -> None:
    scene = vary(Scene("red", "cylinder", "checkered"), random.Random(2))
    before, mask = render(scene, POSES, 48)
    after, after_mask = render(replace(scene, color="white"), POSES, 48)
    assert torch.equal(mask, after_mask)
    assert torch.equal((before * (mask == 0)), (after * (mask == 0)))
    assert (before - after).abs()[mask.expand_as(before) == 1].mean() > 0.2


def test_object_casts_a_shadow_away_from_the_light() -> None:
    above = look_at_pose(0.0, math.radians(89))[None]
    scene = Scene("white", "cylinder", "gray", light_azimuth=math.pi / 2, light_elevation=0.7)
    image, mask = render(scene, above, 64)
    floor = image[0].mean(dim=0).masked_fill(mask[0, 0] > 0, math.nan)
    # Seen from above at azimuth 0, y points to the right.
    assert floor[28:36, 48:].nanmean() > floor[28:36, :16].nanmean() + 0.2


def test_colours_are_told_apart() -> None:
    colors = torch.tensor(list(COLORS.values()))
    assert torch.pdist(colors).min() > 0.3


class TestDetail:
    """What captions never name, and edits keep."""

    @pytest.mark.parametrize("pattern", PATTERNS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape_bears_every_pattern_in_another_shade_of_its_colour(self, shape: str, pattern: str) -> None:
        plain = Scene("blue", shape, "gray")
        detail = replace(Detail.draw(random.Random(0)), pattern=pattern, stones=())
        (without, mask), (with_detail, same) = (
            render(scene, POSES, 48) for scene in (plain, replace(plain, detail=detail))
        )
        assert torch.equal(mask, same)
        assert torch.equal(without * (mask == 0), with_detail * (mask == 0))
        ratios = (with_detail / without).mean(dim=1)[mask[:, 0] == 1]
        marked = (ratios - detail.shade).abs() < 1e-3
        assert 0.1 < marked.float().mean() < 0.9
        assert (marked | ((ratios - 1).abs() < 1e-3)).float().mean() > 0.5  # the others are on a border

    def test_stones_lie_on_the_floor_and_hide_what_is_behind_them(self) -> None:
        detail = replace(Detail.draw(random.Random(0)), stones=((1.2, 0.0, 0.4),))
        scene = Scene("red", "cube", "gray")
        pose = look_at_pose(0.0, math.radians(10))[None]  # the stone is between the camera and the cube
        (_, mask), (_, hidden) = (render(replace(scene, detail=one), pose, 64) for one in (None, detail))
        assert (hidden <= mask).all() and hidden.sum() < 0.97 * mask.sum()

    def test_an_edit_keeps_it(self) -> None:
        scene = replace(Scene("red", "cube", "gray"), detail=Detail.draw(random.Random(1)))
        assert scene.edited(Scene("blue", "cone", "wooden")).detail == scene.detail
