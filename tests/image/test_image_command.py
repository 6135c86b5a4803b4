"""`cds-nerf image` as a user runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_command import files, image_command, noise, raising
from PIL import Image, ImageCms
from safetensors.torch import load_file

from cds_nerf.cli import main
from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import UserAdvice
from cds_nerf.image import edit, edit_file
from cds_nerf.image.latent_descent import descend_latents


def test_each_prompt_gives_an_image_of_the_edit_s_size(model: str, photos: Path) -> None:
    assert image_command(model, "photos/cat.png", target=("a pig", "a dog, at night!")) == 0
    assert files("edited") == ["cat-a-dog-at-night.png", "cat-a-pig.png"]
    with Image.open("edited/cat-a-pig.png") as image:
        assert image.size == (48, 32)


def test_folders_globs_and_files_give_one_edit_each_and_no_name_collides(model: str, photos: Path) -> None:
    assert image_command(model, "photos", "photos/c*.png", "photos/dog.webp", target=("a pig", "a pig?")) == 0
    assert files("edited") == [
        "cat-a-pig-2.png",
        "cat-a-pig-3.png",
        "cat-a-pig-4.png",
        "cat-a-pig.png",
        "dog-a-pig-2.png",
        "dog-a-pig.png",
    ]


def test_a_single_edit_can_be_given_its_file(model: str, photos: Path) -> None:
    assert image_command(model, "photos/cat.png", "--output", "there/pig.png") == 0
    assert files("there") == ["pig.png"]


@pytest.mark.parametrize(("stem", "letter"), [("n" * 240, "p"), ("n" * 240, "深"), ("猫" * 80, "深")])
def test_names_that_would_be_too_long_for_a_file_are_shortened(
    model: str, photos: Path, stem: str, letter: str
) -> None:
    noise().save(f"{stem}.png")
    targets = (letter * 300, letter * 301)
    assert image_command(model, f"{stem}.png", "--plot", target=targets) == 0
    assert len(files("edited")) == 4
    assert all(name.startswith(stem[:30]) and letter * 20 in name for name in files("edited"))


def test_too_little_memory_is_told(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 6144000000 bytes"),
        MemoryError(),
    ]
    for error in errors:
        monkeypatch.setattr(edit_file, "edit_image", raising(error))
        assert image_command(model, "photos/cat.png") == 1
        assert "photos/cat.png: cpu has too little memory for an edit of 48x32 pixels" in capsys.readouterr().err


def test_a_bad_file_is_reported_and_the_others_are_edited(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/broken.png").write_text("no image")
    assert image_command(model, "photos", "nowhere.png") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cds-nerf:")]
    assert errors == [
        "cds-nerf: photos/broken.png is not a PNG, JPEG or WebP image",
        "cds-nerf: there is no image nowhere.png",
    ]
    assert files("edited") == ["cat-a-pig-2.png", "cat-a-pig.png", "dog-a-pig.png"]


def test_the_settings_in_the_png_repeat_it_exactly(model: str, photos: Path) -> None:
    options = ("--seed", "3", "--w-cut", "0.3", "--patch-sizes", "1", "4", "--n-patches", "20", "--min-timestep", "0.2")
    assert image_command(model, "photos/cat.png", *options, "--learning-rate", "0.2") == 0
    with Image.open("edited/cat-a-pig.png") as image:
        settings = json.loads(image.info["cds-nerf"])
    assert settings.pop("steps_done") == settings["steps"] == 2
    del settings["version"]
    again = ["image", settings.pop("image"), "--output", "again.png"]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            again += [flag] if value else []
        elif value is not None:
            again += [flag, *map(str, value if isinstance(value, list) else [value])]
    assert main(again) == 0
    assert pixels("again.png") == pixels("edited/cat-a-pig.png")


def test_settings_change_the_result(model: str, photos: Path) -> None:
    runs = {
        "default": (),
        "seed": ("--seed", "1"),
        "cut": ("--w-cut", "0.3"),
        "rate": ("--learning-rate", "0.5"),
        "square": ("--square",),
    }
    for name, options in runs.items():
        assert image_command(model, "photos/cat.png", "--output", f"{name}.png", *options) == 0
    assert len({pixels(f"{name}.png") for name in runs}) == len(runs)
    with Image.open("square.png") as image:
        assert image.size == (32, 32)


def pixels(file: str) -> bytes:
    with Image.open(file) as image:
        return image.tobytes()


def test_what_saves_memory_leaves_the_image_as_it_is(model: str, photos: Path) -> None:
    savers = ("--gradient-checkpointing", "--vae-tiling", "--vae-slicing", "--cpu-offload")
    assert image_command(model, "photos/cat.png", "--output", "plain.png") == 0
    assert image_command(model, "photos/cat.png", "--output", "saving.png", *savers) == 0
    assert pixels("plain.png") == pixels("saving.png")


def test_pair_strip_plot_and_latents_are_written_on_request(model: str, photos: Path) -> None:
    assert image_command(model, "photos/cat.png", "--pair", "--strip", "--plot", "--latents") == 0
    assert files("edited") == [
        "cat-a-pig.losses.png",
        "cat-a-pig.pair.png",
        "cat-a-pig.png",
        "cat-a-pig.safetensors",
        "cat-a-pig.strip.png",
    ]
    with Image.open("edited/cat-a-pig.pair.png") as pair, Image.open("edited/cat-a-pig.png") as result:
        assert pair.crop((52, 0, 100, 32)).tobytes() == result.tobytes()
    with Image.open("edited/cat-a-pig.strip.png") as strip:
        assert strip.size == (3 * 48 + 2 * 4, 32)  # the image, after step 1, after step 2
    latents = load_file("edited/cat-a-pig.safetensors")
    assert latents["source"].shape == latents["result"].shape == (1, 4, 8, 12)
    assert not latents["source"].equal(latents["result"])


def test_the_colour_profile_is_kept(model: str, photos: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise().save("profile.jpg", icc_profile=profile)
    noise().convert("CMYK").save("ink.jpg", icc_profile=profile)
    assert image_command(model, "profile.jpg", "ink.jpg") == 0
    for name, kept in (("profile", profile), ("ink", None)):
        with Image.open(f"edited/{name}-a-pig.png") as image:
            assert image.info.get("icc_profile") == kept


def test_keep_size_brings_the_image_s_size_back(model: str, photos: Path) -> None:
    noise(size=(101, 77)).save("odd.png")
    assert image_command(model, "odd.png", "--keep-size", "--square", "--output", "out.png") == 0
    with Image.open("out.png") as image:
        assert image.size == (101, 77)


@pytest.mark.parametrize("keep_size", [True, False])
def test_outside_the_mask_the_pixels_are_the_image_s(model: str, photos: Path, keep_size: bool) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (30, 10, 80, 64))
    mask.save("mask.png")
    size = ("--keep-size",) if keep_size else ("--resolution", "64")
    assert image_command(model, "photos/cat.png", "--mask", "mask.png", "--output", "out.png", *size) == 0
    with Image.open("out.png") as result, Image.open("photos/cat.png") as image:
        outside = np.asarray(mask) == 0
        assert (np.asarray(result)[outside] == np.asarray(image)[outside]).all()
        assert (np.asarray(result)[~outside] != np.asarray(image)[~outside]).any()


def test_ctrl_c_saves_what_there_is_and_ends_the_command(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments, **settings):
        yield next(descend_latents(*arguments, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(edit, "descend_latents", interrupted)
    assert image_command(model, "photos") == 130
    assert files("edited") == ["cat-a-pig.png"]
    with Image.open("edited/cat-a-pig.png") as image:
        assert json.loads(image.info["cds-nerf"])["steps_done"] == 1


BAD_INPUT = {
    "missing file": (["nowhere.png"], {}, "there is no image nowhere.png"),
    "text file named .png": (["text.png"], {}, "text.png is not a PNG, JPEG or WebP image"),
    "truncated JPEG": (["cut.jpg"], {}, "the image cut.jpg cannot be read: image file is truncated"),
    "1x1 image": (["dot.png"], {}, "dot.png: the image is 1x1 pixels; each side must have at least 4"),
    "20000x10 image": (["line.png"], {}, "line.png: the image is 20000x10 pixels; one side may be at most 8 times"),
    "empty prompt": (
        ["photos"],
        {"target": ("a pig", "")},
        "target_prompt is missing: describe what it is to become",
    ),
    "no prompt": (["photos"], {"target": ()}, "target_prompt is empty"),
    "same prompts": (["photos"], {"target": ("a cat",)}, "source_prompt and target_prompt are both 'a cat'"),
    "same but for a space": (["photos"], {"target": ("a cat ",)}, "source_prompt and target_prompt are both 'a cat'"),
    "same but for a capital": (["photos"], {"target": ("A cat",)}, "source_prompt 'a cat' and target_prompt 'A cat'"),
    "prompt in an image's place": (
        ["a cat, " * 60],
        {},
        f"there is no image {'a cat, ' * 11}a c...: File name too long",
    ),
    "n_patches 0": (["photos", "--n-patches", "0"], {}, "n_patches is 0; it must be at least 1"),
    "patch larger than the features": (
        ["photos/cat.png", "--patch-sizes", "64"],
        {},
        "photos/cat.png: patch_sizes has 64, but",
    ),
    "wrong model id": (["photos/cat.png", "--model", "no/such"], {}, "the diffusion model no/such"),
    "unwritable output": (["photos", "--output", "text.png/out"], {}, "the output folder text.png/out cannot be"),
    "no images": (["empty"], {}, "empty has no images"),
    "no match": (["*.gif"], {}, "*.gif has no images"),
    "no input": ([], {}, "there are no images to edit"),
    "no steps": (["photos", "--steps", "0"], {}, "steps is 0"),
    "no learning rate": (["photos", "--learning-rate", "0"], {}, "learning_rate is 0.0"),
    "negative seed": (["photos", "--seed", "-1"], {}, "seed is -1; it must be at least 0"),
    "odd resolution": (["photos/cat.png", "--resolution", "31"], {}, "photos/cat.png: resolution is 31; the model's"),
    "output of another format": (["photos", "--output", "a.jpg"], {}, "output is a.jpg, but edits are written as PNG"),
    "one file for several edits": (["photos", "--output", "a.png"], {}, "output is the file a.png, but there are 3"),
    "option in vain": (["photos", "--score", "dds", "--n-patches", "3"], {}, "n_patches is 3, but the contrastive"),
    "missing mask": (["photos", "--mask", "m.png"], {}, "there is no image m.png"),
    "mask of another size": (["photos/cat.png", "--mask", "dot.png"], {}, "mask dot.png is 1x1 pixels and photos/"),
    "empty mask": (["photos/cat.png", "--mask", "black.png"], {}, "photos/cat.png: mask is empty"),
    "unknown device": (["photos/cat.png", "--device", "abacus"], {}, "device is 'abacus', which torch cannot use"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_a_mistake_is_told_in_one_line_with_status_1(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("text.png").write_text("no image")
    noise(size=(300, 300)).save("whole.jpg")
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:5000])
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("RGB", (20000, 10)).save("line.png")
    Image.new("L", (96, 64)).save("black.png")
    Path("empty").mkdir()

    arguments, prompts, message = BAD_INPUT[case]
    settings = {"--model": model, "--device": "cpu", "--steps": "2", "--resolution": "32"}
    defaults = [part for flag, value in settings.items() if flag not in arguments for part in (flag, value)]
    prompt_flags = ["--source-prompt", "a cat", "--target-prompt", *prompts.get("target", ("a pig",))]
    status = main(["image", *arguments, *prompt_flags, *defaults])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cds-nerf:")]
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"cds-nerf: {message}")
    assert not Path("edited").exists() or not files("edited")


def test_what_needs_no_model_is_told_before_it_is_loaded(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionOptions, "load", raising(AssertionError("the model was loaded")))
    Image.new("RGB", (20000, 10)).save("line.png")
    assert image_command("model", "line.png", "nowhere.png") == 1
    assert capsys.readouterr().err.count("cds-nerf: ") == 2


def test_settings_that_the_model_carries_are_taken_where_nothing_was_typed_and_recorded(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, photos / "model")
    content = {"guidance": {"cds": {"guidance_scale": 3.0, "w_cut": 1.5}}, "image": {"learning_rate": 0.02, "steps": 3}}
    (folder / "cds_nerf.json").write_text(json.dumps(content))
    assert image_command(str(folder), "photos/cat.png", "--guidance-scale=7.5") == 0
    assert "settings of the model: w_cut 1.5, learning_rate 0.02\n" in capsys.readouterr().out
    with Image.open("edited/cat-a-pig.png") as image:
        settings = json.loads(image.info["cds-nerf"])
    names = ("guidance_scale", "w_cut", "learning_rate", "steps")
    assert [settings[name] for name in names] == [7.5, 1.5, 0.02, 2]  # the command of these tests gives the steps
    again = ("--w-cut", "1.5", "--learning-rate", "0.02", "--output", "again.png")
    assert image_command(model, "photos/cat.png", *again) == 0
    assert pixels("again.png") == pixels("edited/cat-a-pig.png")


def test_a_prompt_that_is_none_to_the_model_is_told_before_the_first_edit(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserAdvice, match=r"target_prompt has '\(1.2\)', which some programs take for weights"):
        assert image_command(model, "photos", source="a cat, a", target=("a pig (1.2)", "a cat , a")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cds-nerf: the model reads source_prompt 'a cat, a' and target_prompt 'a cat , a' alike")
    assert files("edited") == []


def test_help_has_examples_and_needs_no_torch() -> None:
    code = (
        "import sys\nfrom cds_nerf.cli import main\n"
        "try:\n    main(['image', '--help'])\n"
        "finally:\n    print('heavy:', sorted({'torch', 'diffusers', 'transformers', 'nerfstudio'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'cds-nerf image cat.png --source-prompt "a cat" --target-prompt "a pig" "a dog"' in answer
    assert "--w-cut" in answer
    assert "heavy: []" in answer
