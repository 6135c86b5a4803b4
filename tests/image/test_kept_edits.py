"""What is kept is an edit of the same image, mask, prompts and settings; all else gets a name of its own."""

import json
import os
import shutil
from pathlib import Path

import pytest
from image_command import files, image_command, noise, raising, told
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cds_nerf.files import whole_file
from cds_nerf.image import edit, edit_file
from cds_nerf.image.latent_descent import descend_latents
from cds_nerf.image.record import EditRecord
from cds_nerf.pictures import write_png

CAT = "photos/cat.png"
SIDES = ("--pair", "--strip", "--plot", "--latents")


pytestmark = pytest.mark.usefixtures("loaded_once")


def content(folder: str | Path = "edited") -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in Path(folder).iterdir()}


def test_the_same_command_again_keeps_all(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("photos", *SIDES)
    targets = ("a pig!", "a pig?")
    assert image_command(model, *command, target=targets) == 0
    before = content()
    assert len([name for name in before if name.count(".") == 1 and name.endswith(".png")]) == 6
    capsys.readouterr()
    assert image_command(model, *command, target=targets) == 0
    assert content() == before
    assert len([line for line in told(capsys) if line.startswith("cds-nerf: kept ")]) == 6


def test_another_image_of_the_same_name_is_edited(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, folder in enumerate(("one", "two")):
        Path(folder).mkdir()
        noise(seed=index).save(f"{folder}/cat.png")
    assert image_command(model, "one/cat.png") == 0
    assert image_command(model, "two/cat.png") == 0
    assert "edited/cat-a-pig.png is another edit, of another image" in capsys.readouterr().out
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]
    for order in (("two", "one"), ("one", "two")):
        assert image_command(model, *order) == 0
    assert len(files("edited")) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"target": ("a pig?",)},
        {"source": "a dog"},
        {"arguments": ("--seed", "1")},
        {"arguments": ("--w-cut", "0.3")},
        {"arguments": ("--keep-size",)},
        {"arguments": ("--mask", "mask.png")},
        {"arguments": ("--dtype", "float32")},
    ],
    ids=str,
)
def test_other_prompts_and_settings_give_an_edit_of_their_own(model: str, photos: Path, change: dict) -> None:
    Image.new("L", (96, 64), 255).save("mask.png")
    assert image_command(model, CAT) == 0
    before = content()
    settings = {key: value for key, value in change.items() if key != "arguments"}
    for _ in range(2):
        assert image_command(model, CAT, *change.get("arguments", ()), **settings) == 0
        assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]
    assert content()["cat-a-pig.png"] == before["cat-a-pig.png"]


def test_a_mask_that_was_painted_over_gives_another_edit(model: str, photos: Path) -> None:
    for left in (0, 30):
        mask = Image.new("L", (96, 64))
        mask.paste(255, (left, 0, left + 40, 64))
        mask.save("mask.png")
        assert image_command(model, CAT, "--mask", "mask.png") == 0
    assert len(files("edited")) == 2


@pytest.mark.parametrize("change", ["--gradient-checkpointing", "--vae-tiling", "--vae-slicing", "--cpu-offload"])
def test_what_saves_memory_makes_no_other_edit(model: str, photos: Path, change: str) -> None:
    assert image_command(model, CAT) == 0
    assert image_command(model, CAT, change) == 0
    assert files("edited") == ["cat-a-pig.png"]


def test_the_same_picture_in_another_file_is_the_same_edit(model: str, photos: Path) -> None:
    Path("copy").mkdir()
    info = PngInfo()
    info.add_text("Comment", "the same picture")
    noise().save("copy/cat.png", pnginfo=info)
    assert image_command(model, CAT) == 0
    assert image_command(model, "copy/cat.png") == 0
    assert files("edited") == ["cat-a-pig.png"]


def test_what_another_program_made_is_left(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("edited").mkdir()
    Path("edited/cat-a-pig.png").write_text("mine")
    for arguments in ((), ("--overwrite",)):
        assert image_command(model, CAT, *arguments) == 0
        assert Path("edited/cat-a-pig.png").read_text() == "mine"
    assert "edited/cat-a-pig.png was not made by this command" in capsys.readouterr().out
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]


@pytest.mark.parametrize(
    "texts", [{"cds-nerf": "[1]"}, {"cds-nerf": "{}"}, {"cds-nerf": "{}", "cds-nerf-content": "7"}]
)
def test_a_picture_with_an_odd_record_is_another_edit(model: str, photos: Path, texts: dict[str, str]) -> None:
    Path("edited").mkdir()
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    noise().save("edited/cat-a-pig.png", pnginfo=info)
    assert image_command(model, CAT) == 0
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]


def test_overwriting_replaces_this_edit_alone(model: str, photos: Path) -> None:
    for seed in ("0", "1"):
        assert image_command(model, CAT, "--seed", seed) == 0
    before = content()
    assert image_command(model, CAT, "--seed", "1", "--overwrite") == 0
    after = content()
    assert after["cat-a-pig.png"] == before["cat-a-pig.png"]
    assert after["cat-a-pig-2.png"][0] != before["cat-a-pig-2.png"][0]
    assert len(after) == 2


def test_files_that_are_missing_are_made_and_the_others_stay(model: str, photos: Path) -> None:
    assert image_command(model, CAT) == 0
    before = content()
    assert image_command(model, CAT, *SIDES) == 0
    after = content()
    assert before.items() <= after.items()
    assert len(after) == 5
    Path("edited/cat-a-pig.png").unlink()
    assert image_command(model, CAT, *SIDES) == 0
    assert content()["cat-a-pig.png"][1] == before["cat-a-pig.png"][1]


def test_pictures_that_a_killed_run_has_left_do_not_stand_for_the_edit(model: str, photos: Path) -> None:
    assert image_command(model, CAT, "--pair") == 0
    Path("edited/cat-a-pig.png").unlink()
    assert image_command(model, CAT, "--pair") == 0
    assert files("edited") == ["cat-a-pig.pair.png", "cat-a-pig.png"]


def test_the_image_is_written_where_another_file_of_the_edit_fails(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CDS_NERF_TRACEBACK")
    with monkeypatch.context() as patch:
        patch.setattr(edit_file, "plot_losses", raising(RuntimeError("no font")))
        assert image_command(model, CAT, "--plot") == 1
    assert files("edited") == ["cat-a-pig.png"]
    assert image_command(model, CAT, "--plot") == 0
    assert files("edited") == ["cat-a-pig.losses.png", "cat-a-pig.png"]


def test_an_interrupted_edit_is_made_whole_under_another_name(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments, **settings):
        yield next(descend_latents(*arguments, **settings))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edit, "descend_latents", interrupted)
        assert image_command(model, CAT) == 130
    assert image_command(model, CAT) == 0
    assert "edited/cat-a-pig.png was interrupted after 1 of 2 steps" in capsys.readouterr().out
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]
    assert image_command(model, CAT) == 0
    assert len(files("edited")) == 2

    Path("edited/cat-a-pig-2.png").unlink()
    assert image_command(model, CAT, "--overwrite") == 0
    assert files("edited") == ["cat-a-pig.png"]
    record = EditRecord.read(Path("edited/cat-a-pig.png"))
    assert record is not None
    assert record.is_finished


def test_an_output_file_that_is_another_edit_is_refused(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_command(model, CAT, "--output", "out.png") == 0
    before = Path("out.png").read_bytes()
    assert image_command(model, CAT, "--output", "out.png") == 0
    assert told(capsys)[-1].startswith("cds-nerf: kept out.png, which is this edit of photos/cat.png")
    for other, difference in (
        ((CAT, "--seed", "1"), "out.png is another edit, with seed 0: name another output"),
        ((CAT, "--seed", "1", "--overwrite"), "out.png is another edit, with seed 0: name another output"),
        (("photos/dog.webp",), "out.png is another edit, of another image: name another output"),
    ):
        assert image_command(model, *other, "--output", "out.png") == 1
        assert told(capsys) == [f"cds-nerf: {other[0]}: {difference}"]
    assert image_command(model, CAT, "--output", CAT, "--overwrite") == 1
    assert "photos/cat.png was not made by this command" in told(capsys)[0]
    assert Path("out.png").read_bytes() == before
    assert image_command(model, CAT, "--output", "out.png", "--overwrite") == 0


def test_edits_beside_their_images_are_not_edited_in_turn(model: str, photos: Path) -> None:
    for _ in range(2):
        assert image_command(model, "photos", "--output", "photos", "--pair") == 0
    assert len(files("photos")) == 3 + 2 * 3


def test_edits_in_another_folder_are_edited_and_the_pictures_beside_them_are_not(model: str, photos: Path) -> None:
    assert image_command(model, CAT, "--pair", "--strip", "--plot") == 0
    assert image_command(model, "edited", "--output", "again", source="a pig", target=("a dog",)) == 0
    assert files("again") == ["cat-a-pig-a-dog.png"]


def test_a_name_that_was_taken_meanwhile_is_left(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments, **settings):
        yield from descend_latents(*arguments, **settings)
        with whole_file(Path("edited/cat-a-pig.png")) as file:
            file.write_text("another process's")

    monkeypatch.setattr(edit, "descend_latents", slow)
    assert image_command(model, CAT) == 0
    assert Path("edited/cat-a-pig.png").read_text() == "another process's"
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]


def test_names_differ_where_case_does_not_count(model: str, photos: Path) -> None:
    shutil.copy("photos/dog.webp", "photos/CAT.webp")
    assert image_command(model, "photos/CAT.webp", CAT) == 0
    assert files("edited") == ["CAT-a-pig.png", "cat-a-pig-2.png"]


def test_file_names_that_are_no_utf_8_are_recorded(model: str, photos: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    noise(seed=9).save(name)
    for _ in range(2):
        assert image_command(model, name, *SIDES) == 0
    assert len(files("edited")) == 5
    with Image.open("edited/caf-a-pig.png") as image:
        assert json.loads(image.info["cds-nerf"])["image"] == name


def test_an_edit_that_does_not_tell_its_image_is_another(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_command(model, CAT) == 0
    with Image.open("edited/cat-a-pig.png") as edited:
        settings = json.loads(edited.info["cds-nerf"])
    write_png(Path("edited/cat-a-pig.png"), noise(), settings)
    assert image_command(model, CAT) == 0
    assert "edited/cat-a-pig.png is another edit, of an image that it does not tell" in capsys.readouterr().out
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png"]
