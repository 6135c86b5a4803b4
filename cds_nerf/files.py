"""Whole files and folders, written under another name and renamed; and what a disk says that cannot be written."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cds_nerf.errors import UserError, first_line

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What a write ends with that is no mistake of the program's."""
TORCH_WRITE_FAILURES = ("PytorchStreamWriter failed writing", "unexpected pos")
"""In what torch says when it cannot write a checkpoint: of the write, and of the end that the file then has not."""
PARTIAL = ".partial-"
"""How the name of what is being written begins; a random part and the name that it will have follow."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` once all is written, or vanishes.

    Its name ends as that of `path` does, for libraries that look at the ending.

    Raises:
        UserError: if it cannot be written; a file that was there before is left as it was.
    """
    temporary = _temporary(path)
    with named_on_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to write into; it takes the name `path` once all is written, or vanishes.

    Args:
        path: of the folder, which must not exist or be empty.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = _temporary(path)
    with named_on_failure(path):
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"cannot write {path}: it is there already, with files in it")
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def named_on_failure(path: Path) -> Iterator[None]:
    """Within, a write that fails is a UserError that names `path`, which was to be written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if (failure := write_failure(error)) is None and not isinstance(error, OSError):
            raise
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or failure or error}") from error


def _temporary(path: Path) -> Path:
    """Another each time: none writes into, or removes, what another is writing, on whatever machine."""
    return path.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{path.name}")


def remove_partial(folder: Path) -> None:
    """Remove what killed processes have left in a folder, and in those below, of files that they were writing.

    Args:
        folder: no other process may be writing into it.
    """
    for path in folder.rglob(f"{PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_failure(error: BaseException) -> str | None:
    """What an exception says of the disk; None if it is about something else.

    torch and safetensors have their own exceptions for a write that failed, which tell it in words.
    """
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return str(error)
    if isinstance(error, SafetensorError) and "os error" in str(error):
        return first_line(error)
    if isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_WRITE_FAILURES):
        return "the checkpoint cannot be written, most likely because the disk is full"
    return None
