"""The checkpoints in a run's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cds_nerf.errors import UserError
from cds_nerf.nerf.source_run import read_checkpoint


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


def newest_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint in a run's folder of them, and the number of steps that were made; (None, 0) without one.

    Raises:
        UserError: if it cannot be read. It is left, and nothing goes on or starts anew beside it: it may be whole, and
            the reason may pass.
    """
    files = checkpoint_files(folder)
    if not files:
        return None, 0
    try:
        return files[-1], read_checkpoint(files[-1])["step"] + 1
    except UserError as error:
        then = f"goes on from {files[-2].name}" if len(files) > 1 else "starts anew"
        raise UserError(
            f"{error} It is left as it is. If it is broken for good, move it out of its folder: the same command "
            f"then {then}"
        ) from error


def delete_superseded(newest: Path) -> None:
    """Delete the checkpoints of earlier steps beside a whole one, but for what cannot be read."""
    files = checkpoint_files(newest.parent)
    for path in files[: files.index(newest)]:
        try:
            read_checkpoint(path)
        except UserError:
            continue
        path.unlink()
