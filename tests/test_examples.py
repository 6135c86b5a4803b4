"""The programs in examples/ run, but for the model and the number of steps."""

import runpy
from pathlib import Path

import pytest
from PIL import Image
from tiny_stable_diffusion import make_pipeline

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and an image of its size."""
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained(tmp_path / "model")
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "cat.png")
    return tmp_path


def test_a_network_that_is_a_picture_is_edited(folder: Path) -> None:
    edit = runpy.run_path(str(EXAMPLES / "siren.py"))["edit"]
    edit("cat.png", "learnt.png", "a cat", "a pig", "model", learn=20, steps=0)
    edit("cat.png", "pig.png", "a cat", "a pig", "model", learn=20, steps=3)
    learnt, pig = Image.open("learnt.png"), Image.open("pig.png")
    assert pig.size == (64, 64)
    assert pig.tobytes() != learnt.tobytes()
