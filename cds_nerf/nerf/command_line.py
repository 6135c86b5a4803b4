"""The edge to nerfstudio's commands: what was typed reaches the configuration, and what is wrong is told in one line.

nerfstudio imports its plugins at the start of every ns- command, so that `apply` reaches them all.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import nerfstudio
import tyro

from cds_nerf.errors import Interrupted, UserError, print_advice_alone
from cds_nerf.nerf import compatibility
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.source_training import SourceTrainerConfig, check_no_training_anew
from cds_nerf.nerf.typed_settings import SUBCOMMANDS, settle_typed
from cds_nerf.typed_options import typed_options


def apply() -> None:
    """Connect this process with the edge. Once is enough; more do no harm."""
    keep_what_was_typed()
    if _is_nerfstudio_command():
        sys.excepthook = tell_in_one_line
        print_advice_alone("cds")


@functools.cache
def keep_what_was_typed() -> None:
    """Let tyro say in an edit's configuration what was typed: nerfstudio hands on the finished configuration alone.

    What nerfstudio would act on before an edit or a source is asked is refused here as well.
    """
    parse = tyro.cli

    @functools.wraps(parse)
    def cli(*args: Any, **kwargs: Any) -> Any:
        config = parse(*args, **kwargs)
        if isinstance(config, EditConfig):
            words = kwargs.get("args")
            config.typed = sorted(typed_options(sys.argv[1:] if words is None else words, config, SUBCOMMANDS))
            settle_typed(config)
            compatibility.let_edits_start_their_own_processes(EditConfig)
        elif isinstance(config, SourceTrainerConfig):
            check_no_training_anew(config)
        return config

    tyro.cli = cli  # type: ignore[assignment]


def _is_nerfstudio_command() -> bool:
    """Whether this process is one of nerfstudio's commands, and not a program that imports it."""
    file = getattr(sys.modules["__main__"], "__file__", None) or ""
    package = Path(nerfstudio.__file__).resolve().parent
    return Path(sys.argv[0]).name.startswith("ns-") or package in Path(file).resolve().parents


def tell_in_one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print what the user can mend in one line, and all else as Python does. For `sys.excepthook`."""
    if isinstance(error, Interrupted | UserError):
        print(f"cds: {error}", file=sys.stderr)
        if isinstance(error, Interrupted):
            sys.exit(error.status)
    else:
        sys.__excepthook__(kind, error, traceback)
