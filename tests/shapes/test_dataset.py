"""A capture of a scene: what it writes is what nerfstudio reads, and the same settings give the same files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from cds_nerf import cli
from cds_nerf.errors import UserError
from cds_nerf.nerf.compatibility import read_points_without_open3d
from cds_nerf.shapes.dataset import Capture, write_capture, write_ground_truth
from cds_nerf.shapes.render import FIELD_OF_VIEW, render
from cds_nerf.shapes.scene import COLORS

SOURCE, TARGET = "a red cube on a wooden floor", "a blue cube on a wooden floor"
CAPTURE = Capture.of(SOURCE, views=9, size=20, seed=4)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scene"
    write_capture(CAPTURE, folder)
    write_ground_truth(CAPTURE, TARGET, folder)
    return folder


def test_written_poses_see_the_written_images(folder):
    transforms = json.loads((folder / "transforms.json").read_text())
    assert len(transforms["frames"]) == CAPTURE.views
    for frame in transforms["frames"]:
        assert set(frame) == {"file_path", "transform_matrix"}
        pose = torch.tensor(frame["transform_matrix"])[None, :3]
        image, mask = render(CAPTURE.scene(), pose, CAPTURE.size)
        written = pixels(folder / frame["file_path"])
        assert np.array_equal(written, (image[0].permute(1, 2, 0) * 255).round().byte().numpy())
        written = pixels(folder / frame["file_path"].replace("images", "masks"))
        assert np.array_equal(written, (mask[0, 0] * 255).round().byte().numpy())


def test_nerfstudio_sees_along_the_renderers_rays(folder):
    parser = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False
    ).setup()
    cameras = parser.get_dataparser_outputs("train").cameras
    rays = cameras.generate_rays(camera_indices=0)
    pose = cameras.camera_to_worlds[0]
    ticks = (torch.arange(CAPTURE.size) + 0.5) / CAPTURE.size * 2 - 1
    y, x = torch.meshgrid(-ticks, ticks, indexing="ij")
    half = math.tan(FIELD_OF_VIEW / 2)
    directions = torch.stack([x * half, y * half, -torch.ones_like(x)], dim=-1) @ pose[:, :3].T
    torch.testing.assert_close(rays.directions, torch.nn.functional.normalize(directions, dim=-1))
    torch.testing.assert_close(rays.origins, pose[:, 3].expand_as(directions))


def test_a_quarter_of_the_views_is_held_out(folder):
    parser = NerfstudioDataParserConfig(data=folder).setup()
    names = {
        split: [path.stem for path in parser.get_dataparser_outputs(split).image_filenames]
        for split in ("train", "val", "test")
    }
    assert names["val"] == names["test"] == ["0002", "0006"]
    assert sorted(names["train"] + names["val"]) == [f"{index:04d}" for index in range(CAPTURE.views)]


def test_points_for_splats_are_on_the_surfaces_in_their_colours(folder):
    """As nerfstudio reads them; where a camera sees the object's top, its image has the points' colours."""
    read_points_without_open3d()
    parser = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, load_3D_points=True
    ).setup()
    outputs = parser.get_dataparser_outputs("train")
    points, colors = outputs.metadata["points3D_xyz"], outputs.metadata["points3D_rgb"]
    assert points.dtype == torch.float32 and colors.dtype == torch.uint8
    assert 2000 < len(points) == len(colors) < 5000
    on_floor, on_top = points[:, 2].abs() < 1e-4, (points[:, 2] - points[:, 2].max()).abs() < 1e-4
    assert 0.3 < on_floor.float().mean() < 0.9 and on_top.float().mean() > 0.03
    assert (colors[on_top].float().argmax(dim=1) == int(np.argmax(COLORS["red"]))).all()

    pose = max(CAPTURE.poses(), key=lambda pose: pose[2, 3])  # which sees the top best
    image, _ = render(CAPTURE.scene(), pose[None], 128)
    offset = (points - pose[:, 3]) @ pose[:, :3]
    places = offset[:, :2] * torch.tensor([1.0, -1.0]) / -offset[:, 2:] / math.tan(FIELD_OF_VIEW / 2)
    seen = torch.nn.functional.grid_sample(image, places[None, None], align_corners=False)[0, :, 0].T
    visible = (places.abs() < 1).all(dim=1) & on_top
    assert (seen - colors / 255)[visible].abs().median() < 0.02


def test_cameras_are_spread_over_the_orbit():
    for poses in (Capture.of(SOURCE).poses(), Capture.of(SOURCE).poses()[2::4]):
        azimuths = torch.atan2(poses[:, 1, 3], poses[:, 0, 3]).sort().values
        gaps = torch.cat([azimuths[1:], azimuths[:1] + 2 * math.pi]) - azimuths
        assert gaps.max() < 1.01 * 2 * math.pi / len(poses)
        elevations = torch.rad2deg(torch.asin(poses[:, 2, 2])).sort().values
        assert elevations[0] >= 10 and elevations[-1] <= 50
        assert elevations.diff(prepend=torch.tensor([10.0]), append=torch.tensor([50.0])).max() < 3 * 40 / len(poses)


def test_the_ground_truth_has_the_same_views_and_masks_of_another_colour(folder):
    edited = folder / "edited" / "a-blue-cube-on-a-wooden-floor"
    assert (edited / "transforms.json").read_bytes() == (folder / "transforms.json").read_bytes()
    for index in range(CAPTURE.views):
        mask = pixels(folder / "masks" / f"{index:04d}.png")
        assert np.array_equal(mask, pixels(edited / "masks" / f"{index:04d}.png"))
        before, after = (pixels(place / "images" / f"{index:04d}.png").astype(int) for place in (folder, edited))
        assert np.array_equal(before[mask == 0], after[mask == 0])
        red, blue = before[mask == 255].mean(axis=0), after[mask == 255].mean(axis=0)
        assert red.argmax() == int(np.argmax(COLORS["red"])) and blue.argmax() == int(np.argmax(COLORS["blue"]))


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(folder, tmp_path):
    write_capture(CAPTURE, tmp_path / "again")
    write_ground_truth(CAPTURE, f"A photo of {TARGET}.", tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    write_capture(Capture.of(SOURCE, views=9, size=20, seed=5), tmp_path / "other")
    assert files(tmp_path / "other")["images/0000.png"] != files(folder)["images/0000.png"]


def test_what_is_there_is_kept(folder, tmp_path, capsys):
    words = ["make-scene", SOURCE, str(tmp_path / "scene"), "--views", "4", "--size", "16"]
    assert cli.main(words) == 0
    before = files(tmp_path / "scene")
    assert cli.main([*words, "--target", TARGET]) == 0
    assert f"kept {tmp_path / 'scene'}" in capsys.readouterr().out
    after = files(tmp_path / "scene")
    assert len(after) == len(before) + 10 and after.items() > before.items()
    assert cli.main([*words, "--seed", "1"]) == 1
    assert "holds a scene whose seed is 0, not 1" in capsys.readouterr().err
    (tmp_path / "scene" / "scene.json").unlink()
    assert cli.main(words) == 1
    assert "is no scene" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_unknown_words_are_told_with_the_vocabulary(tmp_path, capsys):
    for words in (["a red fox on a wooden floor"], [SOURCE, "--target", "a red fox on a wooden floor"]):
        assert cli.main(["make-scene", words[0], str(tmp_path / "scene"), *words[1:]]) == 1
        told = capsys.readouterr().err
        assert "'fox'" in told
        for word in ("red", "white", "cube", "cone", "gray", "checkered"):
            assert word in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"views": 3}, {"size": 15}])
def test_too_few_views_or_pixels_are_told(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{name} is {value}; it must be at least {value + 1}"):
        Capture.of(SOURCE, **settings)
