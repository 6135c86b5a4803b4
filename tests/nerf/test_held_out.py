"""Pictures of held-out views: one a view, called as its photograph is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from small_edit import fresh, train_source, write_capture

from cds_nerf.errors import UserError
from cds_nerf.nerf.held_out import picture_names, render_held_out
from cds_nerf.nerf.method import cds_source


@pytest.mark.parametrize(
    ("photographs", "names"),
    [
        (["images/0001.png", "images/0002.jpg"], ["0001.png", "0002.png"]),
        (["cam0/0001.png", "cam1/0001.png", "cam1/0002.png"], ["cam0_0001.png", "cam1_0001.png", "0002.png"]),
        (["b.png", "a/b.png", "a_b.png"], ["b.png", "a_b_1.png", "a_b.png"]),
        (["a.png", "a.jpg"], ["a.png", "a_1.png"]),
        (["A.png", "a.png"], ["A.png", "a_1.png"]),
        (["frame.1.png", "frame.2.png"], ["frame.1.png", "frame.2.png"]),
        ([], []),
    ],
)
def test_pictures_are_called_as_their_photographs_as_far_as_that_tells_them_apart(photographs, names):
    assert picture_names([Path("/data") / name for name in photographs]) == names


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory) -> Path:
    """A run on photographs of two cameras, whose held-out ones are called alike, without lists for "test"."""
    folder = write_capture(tmp_path_factory.mktemp("data") / "rig")
    transforms = json.loads((folder / "transforms.json").read_text())
    for index, frame in enumerate(transforms["frames"]):
        place = folder / f"cam{index % 2}" / f"{index // 2:04d}.png"
        place.parent.mkdir(exist_ok=True)
        (folder / frame["file_path"]).rename(place)
        frame["file_path"] = str(place.relative_to(folder))
    names = [frame["file_path"] for frame in transforms["frames"]]
    transforms |= {"train_filenames": names[2:], "val_filenames": names[:2], "test_filenames": names[:2]}
    (folder / "transforms.json").write_text(json.dumps(transforms))
    return train_source(fresh(cds_source.config), folder, tmp_path_factory.mktemp("runs"))


def test_views_of_several_cameras_are_all_there(two_cameras, tmp_path):
    render_held_out(two_cameras, tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["cam0_0000.png", "cam1_0000.png"]
    assert Image.open(tmp_path / "pictures" / "cam0_0000.png").size == (40, 24)


def test_pictures_that_are_there_are_not_replaced(two_cameras, tmp_path):
    (tmp_path / "picture.png").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        render_held_out(two_cameras, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_run_that_was_moved_is_rendered(two_cameras, tmp_path):
    moved = Path(shutil.copytree(two_cameras, tmp_path / "anywhere"))
    render_held_out(moved, tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 2
