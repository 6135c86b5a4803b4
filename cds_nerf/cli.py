"""The `cds-nerf` command."""

from __future__ import annotations

import inspect
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro

import cds_nerf
from cds_nerf.errors import Interrupted, Terminated, UserError, in_one_line, print_advice_alone
from cds_nerf.image.command import EditImages
from cds_nerf.recipe.command import RunRecipe
from cds_nerf.report.command import EvaluateEdits
from cds_nerf.report.history_command import ShowHistory
from cds_nerf.shapes.command import MakeScene, RunDemo
from cds_nerf.termination import on_sigterm
from cds_nerf.typed_options import typed_options

COMMANDS: dict[str, Any] = {
    "image": EditImages,
    "make-scene": MakeScene,
    "scene": RunRecipe,
    "demo": RunDemo,
    "evaluate": EvaluateEdits,
    "history": ShowHistory,
}
"""Each subcommand: a dataclass of its options that imports no torch, with `EXAMPLES` for its help and `run() -> int`,
which returns the exit status."""

DESCRIPTION = """Text-guided editing of images and radiance fields with Contrastive Denoising Score.

Each command has its own help, with examples: cds-nerf image --help"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: of the command line; by default the process's.

    Returns:
        The exit status: 1 after a mistake or failure, which is told in one line, 130 after Ctrl-C and 143 after
        SIGTERM.

    Raises:
        Exception: what is no mistake of the user, where the environment variable `TRACEBACK` is set.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if [*arguments] == ["--version"]:
        print(f"cds-nerf {cds_nerf.__version__}")
        return 0
    print_advice_alone("cds-nerf")
    # What nerfstudio calls, and torch will not have some day, is not for who runs a command.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|nerfstudio)\.")
    if not sys.stderr.isatty():  # the libraries' own bars, such as of downloads: the first import of tqdm looks at it
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of names and prompts that the terminal cannot show
    try:
        with on_sigterm(_terminate):
            _check_no_word_is_empty(arguments)
            return _parse(arguments).run()
    except Interrupted as error:
        print(f"cds-nerf: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("cds-nerf: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"cds-nerf: {in_one_line(error)}", file=sys.stderr)
        return 1


def _check_no_word_is_empty(words: Sequence[str]) -> None:
    """An empty path would be the working folder. Prompts are left to the commands, which say what is to be in them.

    Raises:
        UserError: if a word is empty, most likely because a variable of the shell is.
    """
    option = ""
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            word = value if equals else option
        if not word.strip() and not option.endswith("prompt"):
            raise UserError(f"an argument is empty{f', behind {option}' if option else ''}: is a variable not set?")


def _terminate() -> None:
    raise Terminated("terminated")


def _parse(arguments: Sequence[str]) -> Any:
    flags = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    if arguments and arguments[0] in COMMANDS:
        name, *options = arguments
        command = COMMANDS[name]
        description = f"{inspect.getdoc(command)}\n\n{command.EXAMPLES}"
        parsed = tyro.cli(command, prog=f"cds-nerf {name}", description=description, args=options, config=flags)
        return replace(parsed, typed=typed_options(options, parsed)) if hasattr(parsed, "typed") else parsed
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="cds-nerf", description=DESCRIPTION, args=arguments, config=flags
    )


if __name__ == "__main__":
    sys.exit(main())
