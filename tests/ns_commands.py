"""nerfstudio's commands as processes that are forked from one that has imported them: that alone takes seconds."""

from __future__ import annotations

import ctypes
import ctypes.util
import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import libusb_package

MODULES = {
    "ns-train": "nerfstudio.scripts.train",
    "ns-render": "nerfstudio.scripts.render",
    "ns-eval": "nerfstudio.scripts.eval",
    "ns-export": "nerfstudio.scripts.exporter",
    "ns-viewer": "nerfstudio.scripts.viewer.run_viewer",
}


def start(words: Sequence[object], folder: Path, log: Path) -> ForkServerProcess:
    """Start a command line in a folder; what it prints goes to `log`.

    The process that all are forked from starts with the first one, and has the environment of that moment; a command
    gets today's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES.values()))
    process = context.Process(target=_run, args=([str(word) for word in words], folder, log, dict(os.environ)))
    process.start()
    return process


def _run(words: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    with log.open("w") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    if ctypes.util.find_library("usb-1.0") is None:  # ns-export's open3d asks for it
        ctypes.CDLL(str(libusb_package.get_library_path()))  # LD_LIBRARY_PATH counts at a process's start alone
    os.chdir(folder)
    sys.argv = words
    import_module(MODULES[words[0]]).entrypoint()
