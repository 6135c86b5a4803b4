"""Whatever is wrong with one image or with the program, the other images are edited and no traceback is shown."""

import os
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from image_command import files, image_command, noise, raising, told
from PIL import Image

from cds_nerf.cli import COMMANDS, main
from cds_nerf.errors import TRACEBACK
from cds_nerf.image import edit_file, source_image
from cds_nerf.image.command import EditImages
from cds_nerf.pictures import read_image


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACEBACK)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "error", [KeyError("a bug"), RecursionError("a bug"), AssertionError("a bug\nand more")], ids=repr
)
def test_an_image_that_fails_to_be_read_or_edited_stops_no_other(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def read(path: Path) -> Image.Image:
        if path.name == "cat.jpg":
            raise error
        return read_image(path)

    edit_image = edit_file.edit_image

    def edit(image, *arguments, **settings):
        if np.array_equal(np.asarray(noise(seed=0).resize((48, 32), Image.Resampling.LANCZOS)), to_bytes(image)):
            raise error
        return edit_image(image, *arguments, **settings)

    monkeypatch.setattr(source_image, "read_image", read)
    monkeypatch.setattr(edit_file, "edit_image", edit)
    assert image_command(model, "photos") == 1
    assert files("edited") == ["dog-a-pig.png"]
    name = type(error).__name__
    assert [line.split("a bug")[0].rstrip("'\"") for line in told(capsys)] == [
        f"cds-nerf: photos/cat.jpg: {name}: ".rstrip("'"),
        f"cds-nerf: photos/cat.png: {name}: ",
    ]


def to_bytes(image) -> np.ndarray:
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bug_in_any_command_is_told_in_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cds_nerf.cli._parse", raising(ZeroDivisionError("division by zero\nsomewhere")))
    assert main([command]) == 1
    line = f"cds-nerf: ZeroDivisionError: division by zero ({TRACEBACK}=1 before the command shows where)\n"
    assert capsys.readouterr().err == line
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ZeroDivisionError):
        main([command])


@pytest.mark.usefixtures("as_users_run_it")
def test_a_model_that_fails_to_load_is_told_once(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EditImages, "_load", raising(OSError("the disk is on fire")))
    assert image_command(model, "photos") == 1
    assert told(capsys) == [f"cds-nerf: OSError: the disk is on fire ({TRACEBACK}=1 before the command shows where)"]


@pytest.mark.usefixtures("loaded_once")
def test_images_of_all_kinds_in_a_folder_are_edited_or_told(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, name in enumerate(("a.jfif", "b.bmp", "c.tiff", "d.gif", "e.TIF")):
        noise(seed=10 + index).save(f"photos/{name}")
    for name in ("f.heic", "g.cr2", "h.jxl"):
        Path(f"photos/{name}").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for name in ("notes.txt", ".hidden.png", ".DS_Store"):
        Path(f"photos/{name}").write_text("nothing to see")
    Path("photos/gone.png").symlink_to("nowhere.png")
    assert image_command(model, "photos") == 1
    assert files("edited") == [
        *("a-a-pig.png", "b-a-pig.png", "c-a-pig.png", "cat-a-pig-2.png"),
        *("cat-a-pig.png", "d-a-pig.png", "dog-a-pig.png", "e-a-pig.png"),
    ]
    assert told(capsys) == [
        "cds-nerf: photos/f.heic is not of a kind that is read here: convert it to PNG or JPEG",
        "cds-nerf: photos/g.cr2 is not of a kind that is read here: convert it to PNG or JPEG",
        "cds-nerf: there is no image photos/gone.png",
        "cds-nerf: photos/h.jxl is not of a kind that is read here: convert it to PNG or JPEG",
    ]


@pytest.mark.usefixtures("loaded_once")
def test_folders_in_a_folder_are_told_but_the_output_s(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_command(model, "photos", "--output", "photos/edited") == 0
    assert told(capsys) == []
    Path("photos/trip").mkdir()
    assert image_command(model, "photos", "--output", "photos/edited") == 0
    assert told(capsys)[0] == (
        'cds-nerf: photos has folders in it, such as trip, which are left out: "photos/**/*" takes all'
    )


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixed"], "mixed has no images, only 1 folders, 2 files that are no images by their names"),
        (["empty"], "empty has no images"),
        (["edited"], "edited has no images, only 1 edits of this command, which another --output edits"),
        (["edited/*.png"], "edited/*.png has no images, only 1 edits of this command, which another --output edits"),
        (["*.heic"], "*.heic has no images"),
    ],
    ids=str,
)
def test_a_folder_without_images_says_what_it_has(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert image_command(model, "photos/cat.png") == 0
    capsys.readouterr()
    Path("empty").mkdir()
    Path("mixed/more").mkdir(parents=True)
    for name in ("a.txt", "b.json"):
        Path(f"mixed/{name}").touch()
    assert image_command(model, *arguments) == 1
    assert told(capsys) == [f"cds-nerf: {message}"]


PROMPTS = ("--source-prompt", "a cat", "--target-prompt", "a pig")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image", "", *PROMPTS], "an argument is empty: is a variable not set?"),
        (["image", *PROMPTS, ""], "target_prompt is"),
        (["image", "--source-prompt", "a cat", "", "--target-prompt", "a pig"], "the name of an image is empty"),
        (
            ["image", "photos", "--output", "", *PROMPTS],
            "an argument is empty, behind --output: is a variable not set?",
        ),
        (["image", "photos", "--output=", *PROMPTS], "an argument is empty, behind --output: is a variable not set?"),
        (["image", "photos", "--mask", " ", *PROMPTS], "an argument is empty, behind --mask: is a variable not set?"),
        (["image", "photos", "--model", "", *PROMPTS], "an argument is empty, behind --model: is a variable not set?"),
        (["scene", ""], "an argument is empty: is a variable not set?"),
        (["make-scene", "a red cube on a wooden floor", ""], "an argument is empty: is a variable not set?"),
        (["demo", "--output", ""], "an argument is empty, behind --output: is a variable not set?"),
        (["demo", "--recipe="], "an argument is empty, behind --recipe: is a variable not set?"),
        (["evaluate", "", "photos"], "an argument is empty: is a variable not set?"),
        ([""], "an argument is empty: is a variable not set?"),
    ],
    ids=str,
)
def test_an_empty_argument_is_refused(
    photos: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    noise().save("cat.png")  # in the working folder, where nobody has asked for an edit
    before = files(".")
    assert main(words) == 1
    (line,) = told(capsys)
    assert line.startswith(f"cds-nerf: {message}")
    assert files(".") == before


@pytest.mark.usefixtures("loaded_once")
def test_a_log_file_gets_one_line_for_each_edit(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert image_command(model, "photos/cat.png", "--steps", "30") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a pig: 30/30 (100 %), ")
    assert "dds=" in line


@pytest.mark.usefixtures("loaded_once")
def test_names_that_the_terminal_cannot_show_stop_nothing(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "猫.png"]
    for index, name in enumerate(names):
        noise(seed=index).save(name)
    broken = os.fsdecode(b"broken\xe9.png")
    Path(broken).write_text("no image")
    output, errors = BytesIO(), BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(output, "ascii", write_through=True))
    monkeypatch.setattr("sys.stderr", TextIOWrapper(errors, "ascii", write_through=True))
    assert image_command(model, *names, broken) == 1
    assert files("edited") == ["caf-a-pig.png", "猫-a-pig.png"]
    assert b"wrote edited/\\u732b-a-pig.png" in output.getvalue()
    assert b"cds-nerf: broken\\udce9.png is not a PNG, JPEG or WebP image" in errors.getvalue()
