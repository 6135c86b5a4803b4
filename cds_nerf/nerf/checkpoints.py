"""The checkpoints in a run's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cds_nerf.errors import UserError


def checkpoint_step(path: Path) -> int | None:
    """The step that a checkpoint's name says; None if it is no name of nerfstudio's."""
    match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    return int(match[1]) if match is not None else None


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last; none without the folder.

    Raises:
        UserError: if the folder cannot be listed: whether there are any is not known then.
    """
    try:
        steps = {path: checkpoint_step(path) for path in map(folder.joinpath, os.listdir(folder))}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    return [path for step, path in sorted((step, path) for path, step in steps.items() if step is not None)]
