"""The examples run: programs, but for the model and the number of steps, and packages, installed as a user does it."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_stable_diffusion import make_pipeline

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion
from cds_nerf.cli import main

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


def test_a_score_of_another_package_is_an_option_like_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed as a user would install it, but into a folder of its own."""
    shutil.copytree(EXAMPLES / "dreamcatalyst", folder / "package")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--disable-pip-version-check", "--target", "site", "./package"], check=True)
    command = ["image", "cat.png", "--source-prompt", "a cat", "--target-prompt", "a pig", "--model", "model"]
    command += ["--steps", "2", "--plot", "--timestep-schedule", "decreasing", "--score"]
    assert main([*command, "dreamcatalyst"]) == 1  # not yet
    monkeypatch.syspath_prepend(folder / "site")
    assert main([*command, "dreamcatalyst"]) == 0
    settings = json.loads(Image.open("edited/cat-a-pig.png").info["cds-nerf"])
    assert (settings["score"], settings["guidance_scale"], settings["min_timestep"]) == ("dreamcatalyst", 7.5, 0.2)
    config = CDSGuidanceConfig(score="dreamcatalyst", guidance_scale=3.0)
    assert (config.guidance_scale, config.max_timestep, config.w_cut) == (3.0, 0.9, 0.0)

    diffusion = LatentDiffusion.from_pretrained("model")
    texts = [diffusion.encode_prompt(prompt) for prompt in ("a cat", "a pig")]
    source, target = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    draw = {"timestep": torch.tensor([300]), "noise": torch.randn_like(source)}
    out, dds = (
        CDSGuidance(CDSGuidanceConfig(score=score), diffusion)(source, target, *texts, **draw)
        for score in ("dreamcatalyst", "dds")
    )
    assert out.terms.keys() == {"dreamcatalyst_loss"}
    expected = 0.075 * 2.718281828**0.3 * (target - source) + (0.2 + 0.8 * 0.3**0.36787944) * dds.gradient
    torch.testing.assert_close(out.gradient, expected)
