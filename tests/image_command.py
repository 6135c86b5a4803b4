"""`cds-nerf image` on small images in two steps, as a user runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cds_nerf.cli import main


def noise(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def image_command(model: str, *arguments: str, source: str = "a cat", target: tuple[str, ...] = ("a pig",)) -> int:
    prompts = ("--source-prompt", source, "--target-prompt", *target)
    settings = ("--model", model, "--device", "cpu", "--steps", "2", "--resolution", "32")
    return main(["image", *settings, *arguments, *prompts])


def files(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command said on stderr."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("cds-nerf: ")]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail
