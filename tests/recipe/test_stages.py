"""The stages of a recipe: done once, resumed where they stopped, and not continued under other settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.scripts import train
from nerfstudio.utils import writer
from PIL import Image
from tiny_stable_diffusion import make_pipeline

from cds_nerf import cli
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.source_run import read_checkpoint
from cds_nerf.recipe import stages
from cds_nerf.recipe.options import parse
from cds_nerf.shapes.dataset import Capture, write_capture

SMALL = {
    "pipeline.model.num-levels": 4,
    "pipeline.model.log2-hashmap-size": 10,
    "pipeline.model.max-res": 64,
    "pipeline.model.hidden-dim": 16,
    "pipeline.model.hidden-dim-color": 16,
    "pipeline.model.num-nerf-samples-per-ray": 8,
    "pipeline.model.num-proposal-iterations": 1,
    "pipeline.model.num-proposal-samples-per-ray": 16,
    "pipeline.datamanager.train-num-rays-per-batch": 64,
    "machine.device-type": "cpu",
}


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The command lines of ns-train that were run; within this process, which is faster."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> int:
        assert command[1:3] == ["-m", "nerfstudio.scripts.train"]
        commands.append(command[3:])
        writer.EVENT_WRITERS.clear()
        writer.EVENT_STORAGE.clear()
        try:
            train.main(parse(command[3:]))
        except SystemExit as error:
            return 1 if error.code else 0
        return 0

    monkeypatch.setattr(stages, "_run", run)
    return commands


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_capture(Capture.of("a red cube on a gray floor", views=4, size=16), tmp_path / "scene")
    make_pipeline().save_pretrained(tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    keys: dict[str, Any] = {
        "capture": "scene",
        "source_prompt": "a red cube",
        "target_prompt": "a blue cube",
        "output": "out",
        "diffusion": "model",
        "source": SMALL | {"max-num-iterations": 4, "steps-per-save": 2},
        "edit": {
            "max-num-iterations": 3,
            "steps-per-save": 1,
            "pipeline.guidance-resolution": 16,
            "pipeline.orbit-frames": 2,
            "machine.device-type": "cpu",
            "optimizers.fields.optimizer.lr": 0.002,
        },
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def change(recipe: Path, section: str | None, **changes: Any) -> None:
    keys = yaml.safe_load(recipe.read_text())
    (keys if section is None else keys[section]).update({name.replace("__", "."): v for name, v in changes.items()})
    recipe.write_text(yaml.safe_dump(keys))


def interrupt_at(monkeypatch: pytest.MonkeyPatch, pipeline: type, step: int) -> None:
    get_train_loss_dict = pipeline.get_train_loss_dict

    def interrupted(self: Any, step_: int | None = None, **kwargs: Any) -> Any:
        if kwargs.get("step", step_) == step:
            raise KeyboardInterrupt
        return get_train_loss_dict(self, kwargs.get("step", step_))

    monkeypatch.setattr(pipeline, "get_train_loss_dict", interrupted)


def steps(run: Path) -> int:
    (path,) = (run / "nerfstudio_models").glob("*.ckpt")
    return read_checkpoint(path)["step"] + 1


def test_from_a_capture_to_the_edited_video_and_no_stage_twice(recipe, commands, tmp_path, capsys):
    assert cli.main(["scene", str(recipe)]) == 0
    assert [command[0] for command in commands] == ["cds-source", "cds"]
    out = tmp_path / "out"
    source, edit = out / "cds-source" / "run", out / "cds" / "a-blue-cube"
    assert (steps(source), steps(edit)) == (4, 3)
    assert (edit / "before_after.mp4").stat().st_size > 0
    for name in ("source", "a-blue-cube"):
        (picture,) = (out / "held_out" / name).glob("*")
        assert picture.name == "0002.png" and Image.open(picture).size == (16, 16)
    assert f"ns-viewer --load-config {edit / 'config.yml'}" in capsys.readouterr().out

    assert cli.main(["scene", str(recipe)]) == 0
    assert len(commands) == 2

    change(recipe, None, target_prompt="a blue cone")  # another edit of the same source
    assert cli.main(["scene", str(recipe)]) == 0
    assert [command[0] for command in commands[2:]] == ["cds"]
    assert steps(out / "cds" / "a-blue-cone") == 3

    change(recipe, "edit", **{"max-num-iterations": 5})  # goes further
    assert cli.main(["scene", str(recipe)]) == 0
    assert len(commands) == 4 and steps(out / "cds" / "a-blue-cone") == 5

    capsys.readouterr()
    change(recipe, "edit", **{"pipeline.guidance.w-cut": 30})
    assert cli.main(["scene", str(recipe)]) == 1
    told = capsys.readouterr().err
    assert "was made with pipeline.guidance.w-cut its default, the recipe says 30: choose another name" in told
    change(recipe, "source", **{"pipeline.model.num-levels": 5})
    assert cli.main(["scene", str(recipe)]) == 1
    assert (
        "was made with pipeline.model.num-levels 4, the recipe says 5: choose another output" in capsys.readouterr().err
    )
    assert len(commands) == 4


def test_an_existing_run_is_edited_without_a_source_stage(recipe, commands, tmp_path):
    assert cli.main(["scene", str(recipe)]) == 0
    change(recipe, None, capture=None, source_run="out/cds-source/run", output="other")
    assert cli.main(["scene", str(recipe)]) == 0
    assert [command[0] for command in commands] == ["cds-source", "cds", "cds"]
    assert not (tmp_path / "other" / "cds-source").exists()
    assert len(list((tmp_path / "other" / "held_out").glob("*/*.png"))) == 2


def test_interrupted_stages_go_on_where_they_stopped(recipe, commands, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, VanillaPipeline, 3)
        assert cli.main(["scene", str(recipe)]) == 1
    assert "the source stage did not end well; the same command goes on" in capsys.readouterr().err
    source, edit = tmp_path / "out" / "cds-source" / "run", tmp_path / "out" / "cds" / "a-blue-cube"
    (source / "nerfstudio_models" / "step-000000099.ckpt").write_bytes(b"cut off")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, CDSPipeline, 2)
        assert cli.main(["scene", str(recipe)]) == 1
    assert "the edit stage did not end well" in capsys.readouterr().err
    assert (steps(source), steps(edit)) == (4, 2)
    assert cli.main(["scene", str(recipe)]) == 0
    assert steps(edit) == 3 and (edit / "before_after.mp4").exists()
    assert [command[0] for command in commands] == ["cds-source", "cds-source", "cds", "cds"]
    assert "--load-checkpoint" in commands[1] and "--pipeline.resume-from" in commands[3]

    (edit / "before_after.mp4").unlink()  # interrupted after the last step
    assert cli.main(["scene", str(recipe)]) == 0
    assert (edit / "before_after.mp4").exists() and steps(edit) == 3
