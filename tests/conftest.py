"""Small models and inputs, and a small capture with a field trained on it and edits of it, all within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands' processes too: the tests themselves run side by side

import pytest
import torch
from tiny_stable_diffusion import make_pipeline
from torch import Tensor

from cds_nerf import LatentDiffusion, TextEmbedding
from cds_nerf.errors import TRACEBACK

if TYPE_CHECKING:  # nerfstudio takes seconds to import, and most tests need it not
    from cds_nerf.nerf.trainer import CDSTrainerConfig

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
MakeDiffusion = Callable[..., LatentDiffusion]


TRAINED_FIELDS = {"source_run", "splat_run"}
"""The fixtures that train a field."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a trained field is needed for, and let the slow tests come first.

    No process then works on a slow one when the others have nothing left to do.
    """
    for item in items:
        if TRAINED_FIELDS & set(getattr(item, "fixturenames", ())) and not item.get_closest_marker("quick"):
            item.add_marker(pytest.mark.field)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def show_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no mistake of a user is raised, and not told in a line."""
    monkeypatch.setenv(TRACEBACK, "1")


@pytest.fixture(scope="session")
def make_diffusion() -> MakeDiffusion:
    """Make a small random Stable Diffusion: `make_diffusion(prediction_type, dtype)`."""

    def make(prediction_type: str = "epsilon", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
        if dtype == torch.float16 and torch.__version__ < "2.2":
            pytest.skip("torch before 2.2 has no float16 on a CPU")
        pipeline = make_pipeline(prediction_type)
        return LatentDiffusion(
            unet=pipeline.unet.to(dtype),
            scheduler=pipeline.scheduler,
            vae=pipeline.vae.to(dtype),
            # In double precision transformers 4 cannot mask.
            text_encoder=pipeline.text_encoder.to(torch.float32 if dtype == torch.float64 else dtype),
            tokenizer=pipeline.tokenizer,
        )

    return make


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """For models in double precision: transformers 4 makes their masks in torch's default one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def diffusion(make_diffusion: MakeDiffusion) -> LatentDiffusion:
    return make_diffusion()


@pytest.fixture
def texts(diffusion: LatentDiffusion) -> tuple[TextEmbedding, TextEmbedding]:
    """The embeddings of a source and a target prompt."""
    return diffusion.encode_prompt("a fox"), diffusion.encode_prompt("a wolf")


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    """Source and target latents: a batch of two, not square, its sides odd after one halving."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(2, 4, 14, 10, generator=generator)
    return source, source + 0.5 * torch.randn(2, 4, 14, 10, generator=generator)


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Stable Diffusion on disk."""
    folder = tmp_path_factory.mktemp("diffusion")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_edit import write_capture

    return write_capture(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="session")
def source_run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small field trained on the capture."""
    from small_edit import fresh, train_source

    from cds_nerf.nerf.method import cds_source

    return train_source(fresh(cds_source.config), capture, tmp_path_factory.mktemp("source"))


@pytest.fixture
def edit_config(source_run: Path, diffusion_folder: Path, tmp_path: Path) -> Callable[..., CDSTrainerConfig]:
    """Makes what ns-train makes of a command line, from keywords such as `pipeline__source_prompt`."""
    from small_edit import edit_config_for

    def make(**typed: object) -> CDSTrainerConfig:
        return edit_config_for(source_run, diffusion_folder, tmp_path / "outputs", **typed)

    return make


@pytest.fixture(scope="session")
def splat_run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small splatfacto trained on the capture."""
    from small_edit import train_splat_source

    return train_splat_source(capture, tmp_path_factory.mktemp("splats"))


HOLDER = """
import sys
from pathlib import Path
from cds_nerf.locking import hold
hold(Path(sys.argv[1]), "")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold_elsewhere() -> Iterator[Callable[[Path], int]]:
    """Lets another process hold a lock; its number."""
    processes = []

    def hold(path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", HOLDER, path]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process.pid

    yield hold
    for process in processes:
        process.communicate()
