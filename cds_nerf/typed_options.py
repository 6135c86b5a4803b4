"""Which options of a tyro command line were typed: a value that equals its default may have been, too."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from cds_nerf.errors import UserError


def typed_options(words: Sequence[str], config: Any, subcommands: Mapping[str, str] | None = None) -> frozenset[str]:
    """The fields of a configuration that a command line sets, by their dotted paths.

    Positional arguments are not among them. tyro takes no word for a value that begins like an option, so that each
    such word is one.

    Args:
        words: of the command line, without the program's name; one that tyro has parsed.
        config: what tyro made of them, a dataclass.
        subcommands: for each word that chooses what a field holds, the path of that field. The options behind the word
            are those of the field, by their short names, and the path itself counts as typed.

    Raises:
        UserError: if an option is none of the configuration's.
    """
    subcommands = subcommands or {}
    paths = {name.replace("-", "_"): path for name, path in _options(config)}
    typed: set[str] = set()
    prefix = ""
    is_value = False
    for word in words:
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            name = prefix + name.replace("-", "_")
            path = paths.get(name) or paths.get(f"{prefix}{name.removeprefix(f'{prefix}no_')}")
            if path is None:
                raise UserError(f"{word} is no option that is known here by this name: see --help for its full name")
            typed.add(path)
            is_value = not equals and not isinstance(value_at(config, path), tuple | list | dict)
        else:
            path = None if is_value else subcommands.get(word.replace("_", "-"))
            if path is not None:
                typed.add(path)
                prefix = f"{path}.".replace("-", "_")
            is_value = False
    return frozenset(typed)


def differing_options(config: Any, default: Any, path: str = "") -> frozenset[str]:
    """The fields in which a configuration differs from another, by their dotted paths."""
    if type(config) is type(default) and dict(_items(config)).keys() == dict(_items(default)).keys() != set():
        of_default = dict(_items(default))
        return frozenset().union(
            *(
                differing_options(value, of_default[key], f"{path}.{key}" if path else key)
                for key, value in _items(config)
            )
        )
    return frozenset() if config == default else frozenset([path])


def _options(config: Any, name: str = "", path: str = "") -> Iterator[tuple[str, str]]:
    """The options of a dataclass, dictionary or list: names as tyro has them, with the paths of the fields."""
    hints = typing.get_type_hints(type(config), include_extras=True) if _is_dataclass_instance(config) else {}
    for key, value in _items(config):
        renamed = [str(given) for extra in typing.get_args(hints.get(key)) if (given := _name_of(extra)) is not None]
        own_name = ".".join(filter(None, [name, *(renamed or [key])]))
        own_path = f"{path}.{key}" if path else key
        yield own_name, own_path
        yield from _options(value, own_name, own_path)


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    if _is_dataclass_instance(config):
        yield from ((field.name, getattr(config, field.name)) for field in fields(config))
    elif isinstance(config, dict):
        yield from ((str(key), value) for key, value in config.items())
    elif isinstance(config, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(config))


def _is_dataclass_instance(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _name_of(annotation: object) -> str | None:
    """The name that `tyro.conf.arg(name=...)` gives an option, "" for none of its own."""
    return getattr(annotation, "name", None) if type(annotation).__module__.startswith("tyro.") else None


def value_at(config: Any, path: str) -> Any:
    """The value of a field, by its dotted path.

    Raises:
        LookupError: if there is no such field.
    """
    for key in path.split("."):
        try:
            config = dict(_items(config))[key]
        except KeyError as error:
            raise LookupError(f"{path}: {type(config).__name__} has no {key}") from error
    return config


def set_value_at(config: Any, path: str, value: Any) -> None:
    """Change a field, by its dotted path.

    Raises:
        LookupError: if there is no such field.
    """
    parent, _, key = path.rpartition(".")
    value_at(config, path)
    holder = value_at(config, parent) if parent else config
    if isinstance(holder, dict):
        (own_key,) = (own for own in holder if str(own) == key)
        holder[own_key] = value
    elif isinstance(holder, list):
        holder[int(key)] = value
    elif isinstance(holder, tuple):
        set_value_at(config, parent, (*holder[: int(key)], value, *holder[int(key) + 1 :]))
    else:
        setattr(holder, key, value)


def as_flag(path: str) -> str:
    """A field's option as it is typed: `--pipeline.source-prompt`."""
    return "--" + path.replace("_", "-")
