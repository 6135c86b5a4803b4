"""A small capture, a small field trained on it, and edits of it, all within seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_edit import edit_config_for, fresh, train_source, write_capture
from tiny_stable_diffusion import make_pipeline

from cds_nerf.nerf.method import cds_source
from cds_nerf.nerf.trainer import CDSTrainerConfig


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusion")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="session")
def source_run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_source(fresh(cds_source.config), capture, tmp_path_factory.mktemp("source"))


@pytest.fixture
def edit_config(source_run: Path, diffusion_folder: Path, tmp_path: Path) -> Callable[..., CDSTrainerConfig]:
    """Makes what ns-train makes of a command line, from keywords such as `pipeline__source_prompt`."""

    def make(**typed: object) -> CDSTrainerConfig:
        return edit_config_for(source_run, diffusion_folder, tmp_path / "outputs", **typed)

    return make
