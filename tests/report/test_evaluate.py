"""`cds-nerf evaluate`: what it measures of pictures and of runs, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_tensor

from cds_nerf import cli
from cds_nerf.evaluation.fidelity import psnr


def picture(path: Path, color: str, size: tuple[int, int] = (48, 40)) -> Path:
    """Noise with a rectangle of a colour."""
    torch.manual_seed(0)
    pixels = (torch.rand(size[1], size[0], 3) * 255).byte().numpy()
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).rectangle((10, 10, 29, 29), fill=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


def means(folder: Path) -> dict[str, float]:
    (edit,) = json.loads((folder / "metrics.json").read_text())["edits"]
    return edit["mean"]


def test_two_pictures_are_compared_within_and_without_the_mask(folder, capsys):
    before, after = picture(folder / "cat.png", "red"), picture(folder / "pig.png", "blue")
    mask = Image.new("L", (48, 40))
    ImageDraw.Draw(mask).rectangle((10, 10, 29, 29), fill=255)
    mask.save("mask.png")
    assert evaluate(before, after, "--mask", "mask.png", "--skip", "clip", "dino", "lpips") == 0
    measured = means(folder / "evaluation")
    one, other = (to_tensor(Image.open(path))[None] for path in (before, after))
    assert measured["psnr"] == pytest.approx(psnr(other, one).item())
    assert measured["psnr_inside"] == pytest.approx(1.76, abs=0.01)  # two of three channels differ by 1
    assert measured["psnr_outside"] is None  # infinite: the same pixels
    assert measured["ssim_outside"] > measured["ssim_inside"]
    out = capsys.readouterr().out
    assert "| PSNR to the source where the edit may act, dB | 1.76" in out
    assert "left out" not in out
    sheet = Image.open(folder / "evaluation" / "contact_sheet.png")
    assert sheet.width > 48


def test_two_folders_are_compared_picture_by_picture(folder):
    for name in ("a", "b", "c"):
        picture(folder / "before" / f"{name}.png", "red")
        picture(folder / "after" / f"{name}.jpg", "blue")
    assert evaluate("before", "after", "--skip", "clip", "dino", "lpips", "--output", "report") == 0
    with (folder / "report" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["view"] for row in rows if row["metric"] == "psnr"] == ["a", "b", "c"]


def test_metrics_of_networks_are_measured_and_what_cannot_be_had_is_named(folder, capsys, monkeypatch):
    from tiny_judges import save_tiny_clip

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    clip = save_tiny_clip(folder / "clip")
    before, after = picture(folder / "cat.png", "red"), picture(folder / "pig.png", "blue")
    prompts = ("--source-prompt", "a cat", "--target-prompt", "a pig")
    assert evaluate(before, after, *prompts, "--clip", clip, "--dino", folder / "no dino", "--skip", "lpips") == 0
    measured = means(folder / "evaluation")
    assert {"clip_text_source", "clip_text_edit", "clip_direction", "clip_accuracy"} <= measured.keys()
    assert "structure_distance" not in measured
    assert "left out: dino, because " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to evaluate"),
        (("cat.png", "nowhere.png"), "nowhere.png does not exist"),
        (("cat.png",), "give two paths: before and after"),
        (("cat.png", "small.png"), "has 48x40 pixels before the edit and 20x20 after it"),
        (("cat.png", "pictures"), "give two pictures or two folders"),
        (("pictures", "others"), "others lacks b, which pictures has"),
        (("cat.png", "pig.png", "--mask", "small.png"), "20x20 pixels; it must be 48x40"),
        (("cat.png", "pig.png", "--orbit", "8"), "--orbit and --camera-path are for runs"),
        (("cat.png", "pig.png", "--output", "pictures"), "the output folder pictures is not empty"),
        (("run", "--source-prompt", "a cat"), "--source-prompt is for pictures"),
        (("run", "cat.png"), "cat.png is no run folder"),
        (("run", "--orbit", "1"), "--orbit is 1; it must be at least 2"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capsys, arguments, message):
    picture(folder / "cat.png", "red"), picture(folder / "pig.png", "blue")
    picture(folder / "small.png", "red", size=(20, 20))
    picture(folder / "pictures" / "a.png", "red"), picture(folder / "pictures" / "b.png", "red")
    picture(folder / "others" / "a.png", "red")
    (folder / "run").mkdir()
    (folder / "run" / "config.yml").touch()
    assert evaluate(*arguments, "--skip", "clip", "dino", "lpips") == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (folder / "evaluation").exists()


def test_runs_stand_side_by_side(edit_config, folder, tmp_path):
    from small_edit import run

    runs = []
    for name in ("wolf", "bear"):
        config = edit_config(timestamp=name, prompt=f"a photo of a {name}", max_num_iterations=2)
        run(config)
        runs.append(config.get_base_dir())
    assert evaluate(*runs, "--orbit", "3", "--skip", "clip", "dino", "lpips", "--output", "report") == 0
    edits = json.loads((folder / "report" / "metrics.json").read_text())["edits"]
    assert [edit["name"].rsplit("/", 1)[1] for edit in edits] == ["wolf", "bear"]
    assert [edit["target_prompt"] for edit in edits] == ["a photo of a wolf", "a photo of a bear"]
    for edit in edits:
        assert len(edit["views"]) == 3
        assert 10 < edit["mean"]["psnr"] < 90
        assert {"psnr_inside", "psnr_outside", "warp_error_source", "warp_error_edit"} <= edit["mean"].keys()
    assert edits[0]["mean"]["warp_error_source"] == edits[1]["mean"]["warp_error_source"]


def test_run_of_another_method_is_refused(source_run, folder, capsys):
    assert evaluate(source_run, "--skip", "clip", "dino", "lpips") == 1
    assert "is a run of another method" in capsys.readouterr().err
