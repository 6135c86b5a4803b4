"""What the README says about editing images works as it stands there, but for the model and the number of steps."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tiny_stable_diffusion import make_pipeline

from cds_nerf import cli
from cds_nerf.image.command import EditImages

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return f"\n{README}".split(f"\n## {heading}\n")[1].split("\n## ")[0]


def code_blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(heading), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and an image of its size."""
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained(tmp_path / "model")
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "cat.png")
    return tmp_path


def run(code: str, replacements: dict[str, str]) -> None:
    for old, new in {'"stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda"': '"model"', **replacements}.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {})


def test_the_example_of_the_guidance_in_own_code_runs(folder: Path) -> None:
    (example,) = code_blocks("Use the guidance in your own code", "python")
    example = example.replace("512, 512", "64, 64")
    run(example + "assert render.grad.isfinite().all() and render.grad.abs().max() > 0", {})


def test_the_example_of_edit_image_runs(folder: Path) -> None:
    (example,) = code_blocks("Edit an image", "python")
    run(example, {"seed=0)": "seed=0, steps=2)"})
    with Image.open("pig.png") as image:
        assert image.size == (64, 64)


def test_the_commands_that_edit_images_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[EditImages] = []
    monkeypatch.setattr(EditImages, "run", lambda command: ran.append(command) or 0)
    lines = [line for block in code_blocks("Edit an image", "bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if not line.startswith("cds-nerf make-scene ")]
    examples = [line.strip() for line in EditImages.EXAMPLES.splitlines()[1:]]
    for line in (*commands, *examples):
        program, *arguments = shlex.split(line)
        assert program == "cds-nerf"
        assert cli.main(arguments) == 0
    assert len(ran) == len(commands) + len(examples) > 5


def test_every_option_that_the_readme_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["image", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    named = re.sub("`python benchmarks/.*?`|cds-nerf make-scene .*", "", section("Edit an image"))
    assert set(re.findall(r"--[a-z][a-z-]+", named)) <= known
