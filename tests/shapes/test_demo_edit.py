"""One whole edit of a scene with the bundled model, by the demo's own path and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torchvision.transforms.functional import to_tensor

from cds_nerf import cli
from cds_nerf.evaluation.fidelity import psnr
from cds_nerf.shapes.demo import BUNDLED_RECIPE, SPLAT_RECIPE


@pytest.mark.slow
def test_demo_turns_the_red_cube_blue_and_keeps_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the stages' processes: sums in one order, however many cores
    recipe = yaml.safe_load(BUNDLED_RECIPE.read_text("utf8"))
    recipe["name"] = "blue"
    recipe["edit"]["pipeline.orbit-frames"] = 4
    (tmp_path / "blue.yaml").write_text(yaml.safe_dump(recipe), "utf8")
    output = tmp_path / "demo"
    assert cli.main(["demo", "--output", str(output), "--recipe", str(tmp_path / "blue.yaml")]) == 0

    quality = json.loads((output / "blue" / "quality.json").read_text("utf8"))
    before, after = quality["before"], quality["after"]
    assert before["with_target"] == 0
    assert after["with_target"] >= 0.8
    assert after["psnr"] > before["psnr"] + 5
    assert after["psnr_outside"] > 22
    with Image.open(output / "blue" / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 0
    assert (output / "blue" / "before_after.mp4").stat().st_size > 0
    printed = capfd.readouterr().out
    assert "ns-viewer --load-config" in printed and "shows the target" in printed


@pytest.mark.slow
def test_demo_on_splats_shows_the_planks_and_turns_the_red_cube_blue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = yaml.safe_load(SPLAT_RECIPE.read_text("utf8")) | {"name": "blue"}
    recipe["edit"]["pipeline.orbit-frames"] = 0
    (tmp_path / "blue.yaml").write_text(yaml.safe_dump(recipe), "utf8")
    output = tmp_path / "demo"
    assert cli.main(["demo", "--output", str(output), "--recipe", str(tmp_path / "blue.yaml")]) == 0

    fidelity = []
    for picture in (output / "held_out" / "source").glob("*.png"):
        with Image.open(picture) as view, Image.open(output / "scene" / "images" / picture.name) as truth:
            fidelity.append(psnr(to_tensor(view)[None], to_tensor(truth)[None]).item())
    assert len(fidelity) == 12 and sum(fidelity) / 12 > 27
    quality = json.loads((output / "blue" / "quality.json").read_text("utf8"))
    assert quality["before"]["with_target"] == 0
    assert quality["after"]["with_target"] >= 0.8
    assert quality["after"]["psnr"] > quality["before"]["psnr"] + 5
    assert quality["after"]["psnr_outside"] > 26
