"""Locks between processes: a file that one of them holds, until it lets go or ends, however it ends."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cds_nerf.errors import UserAdvice, UserError
from cds_nerf.files import named_on_failure

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

RUN_LOCK = ".lock"
"""In a run's folder: what a process holds while it trains or edits there."""
_held: dict[Path, int] = {}
"""The open files of the locks that this process holds."""


class BusyError(UserError):
    """Another process is at it."""


def hold(path: Path, busy: str) -> None:
    """Take a lock, and keep it until `let_go` or until the process has ended; one that it has already stays its own.

    Args:
        path: the lock's file, which is made, and stays.
        busy: what is so while another process has the lock, such as "RUN is being edited".

    Raises:
        BusyError: if another process has it; the message says which.
        OSError: if the file cannot be made.
    """
    if fcntl is None or (path := path.resolve()) in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, fcntl.LOCK_EX, path, busy)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except BaseException:
        os.close(descriptor)
        raise
    _held[path] = descriptor


def let_go(path: Path) -> None:
    """Give a lock back, if this process has it."""
    if (descriptor := _held.pop(path.resolve(), None)) is not None:
        os.close(descriptor)


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """`hold` within; the folder of the lock's file is made where it is not there.

    Raises:
        BusyError: as `hold`.
        UserError: if the file cannot be made.
    """
    with named_on_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        hold(path, busy)
    try:
        yield
    finally:
        let_go(path)


def check_free(path: Path, busy: str) -> None:
    """Check that no other process has a lock; nothing is made.

    Raises:
        BusyError: as `hold`.
    """
    if fcntl is None or path.resolve() in _held:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # there is none
        return
    try:
        _lock(descriptor, fcntl.LOCK_SH, path, busy)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int, path: Path, busy: str) -> None:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # the latter from NFS
        holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        raise BusyError(f"{busy} already, by {holder}: wait for it to end, or stop it") from error
    except OSError as error:
        warnings.warn(
            UserAdvice(
                f"the filesystem of {path.parent} has no locks ({error.strerror}): nothing keeps you from starting "
                "twice what writes there"
            ),
            stacklevel=2,
        )
