"""A small model and three photographs for `cds-nerf image`."""

from pathlib import Path

import pytest
import torch
from image_command import noise
from tiny_stable_diffusion import make_pipeline

from cds_nerf import LatentDiffusion
from cds_nerf.diffusion.options import DiffusionOptions


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def loaded_model(model: str) -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(model, device="cpu", dtype=torch.float32)


@pytest.fixture
def loaded_once(loaded_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds its model in memory."""
    monkeypatch.setattr(DiffusionOptions, "load", lambda options: loaded_model)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three photographs in photos/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(("cat.png", "cat.jpg", "dog.webp")):
        noise(seed=index).save(tmp_path / "photos" / name)
    return tmp_path
