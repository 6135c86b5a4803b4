"""Edits of made scenes are measured against the edit that they should be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cds_nerf.report.true_edit import against_true_edit
from cds_nerf.shapes.dataset import Capture, write_capture
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import parse_caption

TARGET = "a photo of a blue cube on a wooden floor"
VIEWS = (2, 6)


@pytest.fixture(params=[False, True], ids=["plain", "detail"])
def capture(request: pytest.FixtureRequest) -> Capture:
    return Capture.of("a red cube on a wooden floor", views=8, seed=3, detail=request.param)


def photographs(folder: Path) -> list[Path]:
    return [folder / "images" / f"{index:04d}.png" for index in VIEWS]


def test_the_truth_has_all_and_the_unedited_scene_what_need_not_change(capture: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    write_capture(capture, folder)
    poses, scene = capture.poses()[list(VIEWS)], capture.scene()
    truth, _ = render(scene.edited(parse_caption(TARGET)), poses, capture.size)
    found = against_true_edit(list(truth), photographs(folder), TARGET)
    assert found["shows_target"] == found["keeps_rest"] == found["silhouette"] == [1.0, 1.0]
    assert min(found["true_psnr"]) == min(found["true_psnr_outside"]) == float("inf")
    assert ("detail" in found) == capture.detail
    if capture.detail:
        assert found["detail"] == pytest.approx([1.0, 1.0], abs=1e-5)
        plain, _ = render(replace(scene, detail=None), poses, capture.size)
        assert against_true_edit(list(plain), photographs(folder), TARGET)["detail"] == pytest.approx([0, 0], abs=0.1)
    before, _ = render(scene, poses, capture.size)
    found = against_true_edit(list(before), photographs(folder), TARGET)
    assert (found["shows_target"], found["keeps_rest"]) == ([0.0, 0.0], [1.0, 1.0])
    assert max(found["true_psnr"]) < 20 and min(found["true_psnr_outside"]) > 40
    assert min(found["silhouette"]) > 0.9


@pytest.mark.parametrize("settings", [None, "[]", "{}", '{"caption": "a red fox", "views": 8, "size": 64, "seed": 3}'])
def test_where_no_true_edit_is_known_nothing_is_said(settings: str | None, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "scene.json").write_text(settings)
    assert against_true_edit([torch.rand(3, 64, 64)] * 2, photographs(tmp_path), TARGET) == {}
    whole = {"caption": "a photo of a red cube on a wooden floor", "views": 8, "size": 64, "seed": 3}
    (tmp_path / "scene.json").write_text(json.dumps(whole))
    for views, target in (([torch.rand(3, 64, 64)] * 2, "a photo of a fox"), ([torch.rand(3, 32, 32)] * 2, TARGET)):
        assert against_true_edit(views, photographs(tmp_path), target) == {}
    others = [tmp_path / "images" / name for name in ("frame_00001.png", "0008.png")]
    assert against_true_edit([torch.rand(3, 64, 64)] * 2, others, TARGET) == {}
    assert against_true_edit([torch.rand(3, 64, 64)] * 2, photographs(tmp_path), TARGET)
