"""The metrics of a scene's edit, against values worked out by hand."""

import math

import pytest
import torch
from PIL import Image

from cds_nerf.evaluation.attributes import share_kept, share_with_target
from cds_nerf.evaluation.contact_sheet import contact_sheet
from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.evaluation.scene_edit import quality_of_views, quality_table, scene_quality
from cds_nerf.shapes.classifier import AttributeClassifier

RED = {"color": "red", "shape": "cube", "floor": "wooden"}
BLUE = RED | {"color": "blue"}


def test_psnr_is_of_each_view():
    truth = torch.full((3, 3, 2, 2), 0.5)
    images = truth.clone()
    images[0] += 0.1  # mean square error 0.01
    images[1, 0, 0, 0] += 0.2  # 0.04 in one of 12 values
    assert psnr(images, truth).tolist() == pytest.approx([20.0, 10 * math.log10(12 / 0.04), math.inf], rel=1e-5)


def test_psnr_counts_only_the_pixels_that_are_asked_for():
    truth = torch.zeros(1, 3, 1, 2)
    images = torch.tensor([0.1, 0.9]).expand(1, 3, 1, 2)
    where = torch.tensor([[[[True, False]]]])
    assert psnr(images, truth, where).item() == pytest.approx(20.0)
    assert psnr(images, truth, ~where).item() == pytest.approx(-20 * math.log10(0.9))
    assert psnr(images, truth, where & ~where).isnan().all()


def test_outside_is_where_neither_object_is():
    source, target = torch.tensor([0.0, 0.01, 0.0, 1.0]), torch.tensor([0.0, 0.0, 0.5, 1.0])
    shape = (1, 1, 2, 2)
    assert outside(source.reshape(shape), target.reshape(shape)).flatten().tolist() == [True, False, False, False]


def test_shares_of_views():
    seen = [RED, BLUE, BLUE | {"floor": "gray"}, BLUE]
    assert share_with_target(seen, BLUE) == 0.5
    assert share_kept(seen, RED, BLUE) == 0.75


def test_scene_quality_and_its_table():
    truth = torch.full((2, 3, 4, 4), 0.5)
    views = truth.clone()
    views[:, :, :2] += 0.1  # the upper half
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :1] = 1  # the uppermost row
    quality = scene_quality(quality_of_views(views, truth, mask, mask, truth, truth, [BLUE, RED], RED, BLUE))
    assert quality.psnr == pytest.approx(10 * math.log10(2 / 0.01), rel=1e-5)
    assert quality.psnr_outside == pytest.approx(10 * math.log10(3 / 0.01), rel=1e-5)
    assert (quality.with_target, quality.kept) == (0.5, 1.0)
    assert quality_table({"after": quality}).splitlines()[-1] == "| after | 23.0 dB | 24.8 dB | 50% | 100% |"
    assert "silhouette" not in quality_table({"after": quality})  # nothing stands out of this picture
    empty = torch.where(mask == 1, 0, truth)
    quality = scene_quality(quality_of_views(views, truth, mask, mask, empty, truth, [BLUE, RED], RED, BLUE))
    assert (
        quality_table({"after": quality}).splitlines()[-1] == "| after | 23.0 dB | 24.8 dB | 50% | 100% | 1.00 |"
    )  # of two rows


def test_a_classifiers_words_are_the_scenes():
    torch.manual_seed(0)
    seen = AttributeClassifier().classify(torch.rand(3, 3, 64, 64))
    assert 0 <= share_with_target(seen, BLUE) <= share_kept(seen, RED, BLUE) <= 1


def test_contact_sheet_has_every_picture_enlarged():
    colors = ["red", "green", "blue"]
    rows = {label: [Image.new("RGB", (50, 40), color) for color in colors] for label in ("before", "after")}
    sheet = contact_sheet(rows)
    found = {color: count for count, color in sheet.getcolors(sheet.width * sheet.height)}
    assert [found[color] for color in ((255, 0, 0), (0, 128, 0), (0, 0, 255))] == [2 * 200 * 160] * 3
