"""The demo's way with a random model and a random judge: everything is made, whatever it is worth."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_stable_diffusion import make_pipeline

from cds_nerf import cli
from cds_nerf.errors import UserError
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.demo import BUNDLED_RECIPE, SPLAT_RECIPE, Demo


def test_the_recipes_are_shipped_and_complete():
    configs = Path(__file__).parents[2] / "configs"
    assert (configs / "demo.yaml").read_text() == BUNDLED_RECIPE.read_text()
    assert (configs / "demo-splats.yaml").read_text() == SPLAT_RECIPE.read_text()
    demo = Demo.of("a white cone on a gray floor", "a green cone on a gray floor", 3, Path("out"))
    bundled = yaml.safe_load(BUNDLED_RECIPE.read_text())
    assert set(demo.recipe) == {*bundled, "name"}
    assert demo.recipe["source_prompt"] == "a photo of a white cone on a gray floor"
    assert (demo.recipe["seed"], demo.recipe["capture"], demo.recipe["edit"]) == (3, "out/scene", bundled["edit"])


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("a red fox on a gray floor", "a red cube on a gray floor", "'fox'"),
        ("a red cube on a gray floor", "a photo of a red cube on a gray floor", "nothing to change"),
    ],
)
def test_mistakes(source, target, told):
    with pytest.raises(UserError, match=told):
        Demo.of(source, target, 0, Path("out"))


def test_a_recipe_says_what_its_field_is(capsys):
    assert cli.main(["demo", "--field", "splats", "--recipe", "mine.yaml"]) == 1
    assert "--field is splats, but the recipe mine.yaml says what its field is" in capsys.readouterr().err


def test_recipe_with_a_source_of_its_own_is_refused(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(BUNDLED_RECIPE.read_text()) | {"source_run": "outputs/fox"}))
    with pytest.raises(UserError, match=r"mine\.yaml has a source_run.*cds-nerf scene"):
        Demo.of("a red cube on a gray floor", "a blue cube on a gray floor", 0, Path("out"), recipe)


@pytest.mark.parametrize("command", ["make-scene", "scene", "demo"])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert f"  cds-nerf {command} " in capsys.readouterr().out


@pytest.mark.parametrize("detail", [False, True])
def test_report_says_how_much_detail_is_kept_where_there_is_some(tmp_path, detail):
    demo = Demo.of("a red cube on a gray floor", "a blue cube on a gray floor", 0, tmp_path, detail=detail)
    demo.make_scene()
    truth = tmp_path / "scene" / "edited" / demo.name / "images"
    for name in ("source", demo.name):
        (tmp_path / "held_out" / name).mkdir(parents=True)
        for file in ("0002.png", "0030.png"):
            shutil.copy(truth / file, tmp_path / "held_out" / name)
    quality = demo.report(AttributeClassifier().eval())
    assert quality["after"].silhouette == 1
    assert quality["after"].detail == pytest.approx(1.0, abs=0.01) if detail else math.isnan(quality["after"].detail)
    assert ("detail kept" in (tmp_path / demo.name / "quality.md").read_text()) == detail


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AttributeClassifier, "from_pretrained", lambda: AttributeClassifier().eval())
    make_pipeline().save_pretrained(tmp_path / "model")
    keys = yaml.safe_load(BUNDLED_RECIPE.read_text())
    keys["diffusion"] = "model"
    keys["source"] |= {
        "max-num-iterations": 5,
        "pipeline.model.log2-hashmap-size": 10,
        "pipeline.model.hidden-dim": 16,
        "pipeline.datamanager.train-num-rays-per-batch": 64,
        "machine.device-type": "cpu",
    }
    keys["edit"] |= {
        "max-num-iterations": 2,
        "optimizers.fields.scheduler.warmup-steps": 1,
        "optimizers.proposal-networks.scheduler.warmup-steps": 1,
        "pipeline.guidance-resolution": 16,
        "pipeline.orbit-frames": 2,
        "machine.device-type": "cpu",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    target = "a red sphere on a wooden floor"
    assert cli.main(["demo", "--target", target, "--recipe", "recipe.yaml", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert "| after | " in printed and "ns-viewer --load-config out/cds/a-red-sphere-on-a-wooden-floor/" in printed
    report = tmp_path / "out" / "a-red-sphere-on-a-wooden-floor"
    assert {path.name for path in report.iterdir()} == {
        "contact_sheet.png",
        "before_after.mp4",
        "quality.md",
        "quality.json",
    }
    with Image.open(report / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * 128 and sheet.height > 3 * 128
    quality = json.loads((report / "quality.json").read_text())
    assert set(quality) == {"before", "after"} and quality["before"]["psnr"] > 0
