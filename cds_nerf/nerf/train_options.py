"""The options of ns-train by their dotted names: known ones, of the right type, in the order that ns-train takes."""

from __future__ import annotations

import contextlib
import io
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal

import tyro
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion, all_methods
from nerfstudio.engine.trainer import TrainerConfig

from cds_nerf.errors import UserError, nearest, way_out

PARSER = "pipeline.datamanager.dataparser"
"""The option that names a data parser, such as colmap, as ns-train's subcommand does; its own options are below it."""
DEFAULT_PARSER = "nerfstudio-data"


def normalised(
    options: Mapping[str, Any], method: str, managed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, list[str]]:
    """Options as words of a command line by their names in dashes, each known to the method.

    Args:
        options: by dotted name, with dashes or underscores; values as YAML has them.
        method: of ns-train.
        managed: options that a recipe sets itself, with the key that sets them.

    Raises:
        UserError: if an option is unknown, managed, given twice, or not one of its choices; the nearest right one is
            named.
    """
    names = {str(name).replace("_", "-"): str(name) for name in options}
    if len(names) < len(options):
        raise UserError("an option is given twice, with dashes and with underscores")
    values = {dashed: options[name] for dashed, name in names.items()}
    parser = values.get(PARSER, DEFAULT_PARSER)
    if parser not in all_dataparsers:
        raise UserError(f"{PARSER} is {parser!r}: {way_out(str(parser), all_dataparsers)}")
    known = dict(_leaves(all_methods[method]))
    known = {name: choices for name, choices in known.items() if not name.startswith(f"{PARSER}.")}
    known |= {f"{PARSER}.{name}": choices for name, choices in _leaves(all_dataparsers[parser])}
    known[PARSER] = ()
    for name, value in values.items():
        if name in managed:
            raise UserError(f"{name} follows from the recipe's {managed[name]}: set that")
        if name not in known:
            raise UserError(f"{name} is no option of ns-train {method}: {_nearest_option(name, known)}")
        if isinstance(value, dict):
            raise UserError(f"{name} holds options: write them in full, such as {name}.{next(iter(value), 'name')}")
        if (choices := known[name]) and value not in choices:
            raise UserError(f"{name} is {value!r}: {way_out(str(value), [str(choice) for choice in choices])}")
    return {name: _words(value) for name, value in values.items()}


def command_line(method: str, options: Mapping[str, list[str]]) -> list[str]:
    """The words that follow `ns-train`; the data parser's options come last, behind its name."""
    own, parser = [method], []
    for name, words in options.items():
        if name.startswith(f"{PARSER}."):
            parser += _option(name.removeprefix(f"{PARSER}."), words)
        elif name != PARSER:
            own += _option(name, words)
    if parser or PARSER in options:
        own += [*options.get(PARSER, [DEFAULT_PARSER]), *parser]
    return own


def _option(name: str, words: list[str]) -> list[str]:
    """An option with its value; one that begins with a dash would be taken for an option of its own."""
    return [f"--{name}={words[0]}"] if len(words) == 1 and words[0].startswith("-") else [f"--{name}", *words]


def parse(words: list[str]) -> TrainerConfig:
    """What ns-train makes of a command line.

    Raises:
        UserError: if it does not take it.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            return tyro.cli(AnnotatedBaseConfigUnion, args=words)  # type: ignore[return-value]
    except SystemExit as error:
        # A title, the reason and hints, between rules; without colours and frames, as it goes to no terminal.
        _, reason, *_ = [*re.split(r"\n\s*-{8,}\s*\n", told.getvalue()), ""]
        raise UserError(f"ns-train {words[0]} does not take the options: {' '.join(reason.split())}") from error


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The dotted names of a configuration's options, each with its choices if they are few."""
    if is_dataclass(config):
        hints = typing.get_type_hints(type(config)) if config is not None else {}
        items = [(f.name, getattr(config, f.name), hints[f.name]) for f in fields(config) if f.name[0] != "_"]
    elif isinstance(config, dict):
        items = [(str(name), value, None) for name, value in config.items()]
    else:
        items = [(str(index), value, None) for index, value in enumerate(config)]
    for name, value, hint in items:
        path = prefix + name.replace("_", "-")
        nested = isinstance(value, list | tuple) and any(is_dataclass(v) or isinstance(v, dict) for v in value)
        if (is_dataclass(value) and not isinstance(value, type)) or (isinstance(value, dict) and value) or nested:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, _choices(hint)


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a type hint such as `Literal["a", "b"] | None` allows; nothing if it is of another kind."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    parts = typing.get_args(hint)
    if len(parts) == 2 and type(None) in parts:
        (other,) = (part for part in parts if part is not type(None))
        return (*choices, None) if (choices := _choices(other)) else ()
    return ()


def _nearest_option(name: str, names: Collection[str]) -> str:
    """A question that names the nearest option, by the whole name or by its last part."""
    last = name.rsplit(".", 1)[-1]
    last_parts = {full.rsplit(".", 1)[-1] for full in names}
    near_last = last if last in last_parts else nearest(last, last_parts)
    alike = [full for full in names if full.rsplit(".", 1)[-1] == near_last]
    found = nearest(name, alike, cutoff=0.0) or nearest(name, names)
    return f"did you mean {found}?" if found else "see its --help"


def _words(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
