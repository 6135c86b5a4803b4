"""The `cds-nerf` command."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro

from cds_nerf.errors import UserError, print_advice_alone
from cds_nerf.image.command import EditImages
from cds_nerf.recipe.command import RunRecipe
from cds_nerf.report.command import EvaluateEdits
from cds_nerf.shapes.command import MakeScene, RunDemo
from cds_nerf.typed_options import typed_options

COMMANDS: dict[str, Any] = {
    "image": EditImages,
    "make-scene": MakeScene,
    "scene": RunRecipe,
    "demo": RunDemo,
    "evaluate": EvaluateEdits,
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
        The exit status: 1 after a mistake of the user, which is told in one line, and 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    print_advice_alone("cds-nerf")
    try:
        return _parse(arguments).run()
    except UserError as error:
        print(f"cds-nerf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cds-nerf: interrupted", file=sys.stderr)
        return 130


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
