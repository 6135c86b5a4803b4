"""ns-train that kills itself, as SIGKILL or a power failure would, at the n-th change that it makes to a folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ns_commands
import torch

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "torch.save")


def run(words: Sequence[object], folder: Path, log: Path, at: int | None = None) -> list[str]:
    """Run a command line of ns-train to its end, or up to its n-th change to what is in `folder`.

    Returns:
        The changes that it made, or began: such as "open config.yml".
    """
    changes = log.with_suffix(".changes")
    changes.write_text("")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(ns_commands.MODULES.values()))
    process = context.Process(target=_run, args=([str(word) for word in words], folder, log, changes, at))
    process.start()
    process.join(600)
    assert process.exitcode == (0 if at is None else -signal.SIGKILL), log.read_text()[-3000:]
    return changes.read_text().splitlines()


def _run(words: list[str], folder: Path, log: Path, changes: Path, at: int | None) -> None:
    record = os.open(changes, os.O_WRONLY | os.O_APPEND)
    left = -1 if at is None else at
    where = f"{folder}/outputs/"

    def note(change: str) -> None:
        nonlocal left
        os.write(record, f"{change}\n".encode())
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(arguments[0], str | Path):
            return
        if event == "open" and not (set(arguments[1] or "") & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if (path := os.path.abspath(arguments[0])).startswith(where):
            note(f"{event} {path.removeprefix(where)}")

    save = torch.save

    def save_or_die(state: Any, path: Path) -> None:
        save(state, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        note(f"torch.save {path.name}")  # half of it is on the disk
        path.write_bytes(whole)

    torch.save = save_or_die
    sys.addaudithook(watch)
    ns_commands._run(words, folder, log, dict(os.environ))
