"""The stages of a recipe: done once, resumed where they stopped, and not continued under other settings."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.scripts import train
from nerfstudio.utils import writer
from PIL import Image
from tiny_stable_diffusion import make_pipeline

from cds_nerf import cli
from cds_nerf.errors import Interrupted, UserError
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.source_run import read_checkpoint
from cds_nerf.nerf.train_options import parse
from cds_nerf.recipe import stages
from cds_nerf.shapes.dataset import Capture, write_capture

pytestmark = pytest.mark.field

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


def run_here(command: list[str]) -> int:
    """ns-train within this process, which is faster."""
    assert command[1:3] == ["-m", "nerfstudio.scripts.train"]
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    try:
        train.main(parse(command[3:]))
    except (UserError, Interrupted):
        return 1
    return 0


def write_recipe(folder: Path) -> Path:
    write_capture(Capture.of("a red cube on a gray floor", views=4, size=16), folder / "scene")
    make_pipeline().save_pretrained(folder / "model")
    path = folder / "recipe.yaml"
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


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The command lines of ns-train that were run."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> int:
        commands.append(command[3:])
        return run_here(command)

    monkeypatch.setattr(stages, "_run", run)
    return commands


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path)


def change(recipe: Path, section: str | None, **changes: Any) -> None:
    keys = yaml.safe_load(recipe.read_text())
    (keys if section is None else keys[section]).update({name.replace("__", "."): v for name, v in changes.items()})
    recipe.write_text(yaml.safe_dump(keys))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the recipe was followed to its end."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stages, "_run", run_here)
        write_recipe(folder)
        assert cli.main(["scene", "recipe.yaml"]) == 0
    return folder


@pytest.fixture
def done(finished, tmp_path, monkeypatch) -> Path:
    """A recipe that has been followed to its end, in a folder that has moved."""
    folder = Path(shutil.copytree(finished, tmp_path / "moved"))
    monkeypatch.chdir(folder)
    return folder / "recipe.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but for the locks that a recipe leaves."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def told_by(capsys: pytest.CaptureFixture, recipe: Path) -> str:
    """The one line with which the recipe's command ends with status 1."""
    capsys.readouterr()
    assert cli.main(["scene", str(recipe)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


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


BROKEN = {
    "cut off": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "foreign": lambda whole: b"no checkpoint at all",
}


@pytest.mark.parametrize("stage", ["cds-source/run", "cds/a-blue-cube"])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_checkpoint_that_cannot_be_read_is_named_and_left(done, commands, capsys, stage, broken):
    folder = done.parent / "out" / stage / "nerfstudio_models"
    (whole,) = folder.iterdir()
    newer = folder / "step-000000099.ckpt"
    newer.write_bytes(broken(whole.read_bytes()))
    before = contents(done.parent)
    told = told_by(capsys, done)
    assert (
        f"the checkpoint {newer} cannot be read" in told and f"the same command then goes on from {whole.name}" in told
    )
    whole.write_bytes(newer.read_bytes())
    newer.unlink()
    told = told_by(capsys, done)
    assert f"the checkpoint {whole} cannot be read" in told and "the same command then starts anew" in told
    assert contents(done.parent).keys() == before.keys() - {str(newer.relative_to(done.parent))}
    assert not commands


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_checkpoint_whose_disk_has_an_error_that_passes_is_left(done, commands, capsys, monkeypatch, code):
    before = contents(done.parent)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
        assert os.strerror(code) in told_by(capsys, done)
    assert contents(done.parent) == before
    assert cli.main(["scene", str(done)]) == 0 and not commands


def test_checkpoints_of_a_folder_that_cannot_be_listed_are_not_taken_for_none(done, commands, capsys, monkeypatch):
    listdir = os.listdir

    def fail(path: Path) -> list[str]:
        if Path(path).name == "nerfstudio_models":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", fail)
    assert "nerfstudio_models cannot be read (Permission denied)" in told_by(capsys, done)
    assert not commands


def test_checkpoint_is_read_without_mmap_where_the_filesystem_has_none(done, commands, monkeypatch):
    load = torch.load

    def without_mmap(*args: Any, mmap: bool = False, **kwargs: Any) -> Any:
        if mmap:
            raise OSError(errno.ENODEV, "No such device")
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", without_mmap)
    assert cli.main(["scene", str(done)]) == 0 and not commands


def test_checkpoint_in_the_older_format_is_read_and_gone_on_from(done, commands):
    change(done, "source", **{"max-num-iterations": 5})
    shutil.rmtree(done.parent / "out" / "cds")
    (path,) = (done.parent / "out" / "cds-source" / "run" / "nerfstudio_models").iterdir()
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert cli.main(["scene", str(done)]) == 0
    assert commands[0][:1] == ["cds-source"] and "--load-checkpoint" in commands[0]
    assert steps(path.parents[1]) == 5


@pytest.mark.parametrize(
    ("lock", "made"),
    [
        (".a-blue-cube.lock", "cds/a-blue-cube"),  # the same recipe
        (".source.lock", "cds-source/run"),  # another edit, which makes the source for both
        ("cds/a-blue-cube/.lock", "cds/a-blue-cube"),  # the run itself, by hand, or left by a recipe that was killed
        ("cds-source/run/.lock", "cds-source/run"),
    ],
)
def test_recipe_that_runs_already_says_so_and_touches_nothing(done, commands, capsys, hold_elsewhere, lock, made):
    out = done.parent / "out"
    (out / "cds" / "a-blue-cube" / "nerfstudio_models" / "step-000000099.ckpt").write_bytes(b"being written")
    before = contents(done.parent)
    process = hold_elsewhere(out / lock)
    assert f"{out / made} is being made already, by process {process} on " in told_by(capsys, done)
    assert contents(done.parent) == before and not commands


def test_two_edits_of_one_source_do_not_disturb_each_other(done, commands, hold_elsewhere):
    out = done.parent / "out"
    hold_elsewhere(out / ".a-blue-cube.lock")
    hold_elsewhere(out / "cds" / "a-blue-cube" / ".lock")
    before = contents(out)
    change(done, None, target_prompt="a blue cone")
    assert cli.main(["scene", str(done)]) == 0
    assert contents(out).items() >= before.items() and steps(out / "cds" / "a-blue-cone") == 3


def test_edit_of_another_source_is_not_taken_as_done(done, commands, capsys):
    other = shutil.copytree("out/cds-source/run", "other/scene/cds-source/run")
    change(done, None, source_run=str(other))
    assert cli.main(["scene", str(done)]) == 0  # the same checkpoint, elsewhere
    (path,) = (Path(other) / "nerfstudio_models").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["pipeline"]["_model.field.mlp_head.layers.0.weight"] += 1
    torch.save(checkpoint, path)
    out = done.parent.resolve() / "out"
    assert re.search(
        rf"{out}/cds/a-blue-cube was made from the source .*/out/cds-source/run/nerfstudio_models/step-000000003.ckpt, "
        rf"the recipe's is {path.resolve()}: choose another name, or move that folder away$",
        told_by(capsys, done),
    )
    assert not commands


def test_source_that_was_made_anew_in_its_place_is_another(done, commands, capsys):
    (path,) = Path("out/cds-source/run/nerfstudio_models").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["pipeline"]["_model.field.mlp_head.layers.0.weight"] += 1
    torch.save(checkpoint, path)
    change(done, None, source_run="out/cds-source/run")
    assert cli.main(["scene", str(done)]) == 1
    assert re.search(r"was made from the source .*\.ckpt, .* another name", capsys.readouterr().err)
    assert not commands


def test_source_is_not_taken_further_under_an_edit_of_it(done, commands, capsys):
    change(done, "source", **{"max-num-iterations": 8})
    assert "and the recipe takes that to 8 steps: choose another name for an edit of it" in told_by(capsys, done)
    change(done, None, name="of the better source")
    assert cli.main(["scene", str(done)]) == 0
    assert [command[0] for command in commands] == ["cds-source", "cds"]


def test_runs_of_another_capture_are_not_taken_as_done(done, commands, capsys):
    write_capture(Capture.of("a red cube on a gray floor", views=4, size=16, seed=1), done.parent / "scene 2")
    change(done, None, capture="scene 2")
    assert re.search(
        r"out/cds-source/run was made from the capture .*/scene, the recipe's is .*/scene 2: choose another output",
        told_by(capsys, done),
    )
    assert not commands


def test_capture_that_has_moved_is_the_same(done, commands):
    Path("scene").rename("elsewhere")
    change(done, None, capture="elsewhere")
    shutil.rmtree("out/held_out")
    assert cli.main(["scene", str(done)]) == 0
    assert not commands and len(list(Path("out/held_out").glob("*/*.png"))) == 2


def test_run_whose_capture_has_moved_is_edited_and_the_edit_goes_on(done, commands, monkeypatch, tmp_path):
    run = Path(shutil.copytree("out/cds-source/run", tmp_path / "runs" / "scene" / "cds-source" / "old"))
    config = (run / "config.yml").read_text()
    assert "- scene\n" in config
    (run / "config.yml").write_text(config.replace("- scene\n", "- gone\n"))
    Path("scene").rename("elsewhere")
    change(done, None, source_run=str(run), capture="elsewhere", output="other")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, CDSPipeline, 2)
        assert cli.main(["scene", str(done)]) == 1
    Path("elsewhere").rename("and on")
    change(done, None, capture="and on")
    assert cli.main(["scene", str(done)]) == 0
    assert [command[0] for command in commands] == ["cds", "cds"] and "--pipeline.resume-from" in commands[1]
    assert steps(Path("other/cds/a-blue-cube")) == 3
    assert len(list(Path("other/held_out").glob("*/*.png"))) == 2


@pytest.mark.parametrize("same", [True, False])
def test_recipes_of_version_0_1_0_are_compared_by_the_configuration_of_the_run(done, commands, capsys, same):
    for run in ("cds-source/run", "cds/a-blue-cube"):
        path = Path("out") / run / "recipe.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != stages.MADE_FROM}))
    if not same:
        other = Path(shutil.copytree("out/cds-source/run", "other/scene/cds-source/run"))
        (path,) = (other / "nerfstudio_models").iterdir()
        torch.save(torch.load(path, weights_only=True) | {"scalers": {"another": 1}}, path)
        change(done, None, source_run=str(other))
    assert cli.main(["scene", str(done)]) == (0 if same else 1)
    assert same or "a-blue-cube was made from the source " in capsys.readouterr().err
    assert not commands


def test_recipe_goes_on_after_a_kill_before_anything_was_written(recipe, commands):
    (Path("out") / "cds-source" / "run").mkdir(parents=True)
    (Path("out") / "cds-source" / "run" / ".partial-123-recipe.json").write_text("{")
    assert cli.main(["scene", str(recipe)]) == 0


@pytest.mark.parametrize("content", ["", "[]", '{"made from": {"source": 3}}'])
def test_settings_that_cannot_be_read_are_named_and_left(done, commands, capsys, content):
    path = done.parent / "out" / "cds" / "a-blue-cube" / "recipe.json"
    path.write_text(content)
    assert f"{path} cannot be read (" in told_by(capsys, done)
    assert path.read_text() == content and not commands


def test_pictures_follow_their_run_and_what_else_lies_there_stays(done, commands):
    pictures = Path("out") / "held_out"
    (pictures / "a-blue-cube" / "notes.txt").write_text("mine")
    before = contents(pictures)
    change(done, "edit", **{"max-num-iterations": 5})
    assert cli.main(["scene", str(done)]) == 0
    after = contents(pictures)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"a-blue-cube/0002.png"}
