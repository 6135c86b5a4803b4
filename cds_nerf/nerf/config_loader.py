"""A run's `config.yml`, read so that nothing in it can act.

nerfstudio's own loader builds whatever a file asks for, and by that runs any program. Here a file may ask for
configuration classes of nerfstudio and of installed method plugins, for names of their classes and functions, for
paths and for plain values. Nothing is imported on its behalf.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path, PureWindowsPath
from types import FunctionType
from typing import Any, get_origin

import yaml
from nerfstudio.configs.base_config import PrintableConfig

from cds_nerf.errors import UserError

TAG = "tag:yaml.org,2002:python/"
"""What PyYAML writes before the Python objects of a file."""
PATHS = {
    f"{module}.{kind}Path"
    for module in ("pathlib", "pathlib._local")  # the latter is Python 3.13's
    for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
}
"""Paths, of whatever system and Python the run was made with."""
RENAMED = {
    f"nerfstudio.data.datamanagers.{kind}_datamanager.{name}DataManagerConfig": (
        "nerfstudio.data.datamanagers.base_datamanager.VanillaDataManagerConfig"
    )
    for kind, name in (
        ("depth", "Depth"),
        ("sdf", "SDF"),
        ("semantic", "Semantic"),
        ("variable_res", "VariableRes"),
    )
} | {
    "nerfstudio.data.dataparsers.friends_dataparser.FriendsDataParserConfig": (
        "nerfstudio.data.dataparsers.sitcoms3d_dataparser.Sitcoms3DDataParserConfig"
    ),
}
"""Configuration classes of older versions of nerfstudio, and what does their work now."""
RENAMED_SETTINGS = {"train_split_percentage": "train_split_fraction"}
"""Settings of older versions of nerfstudio, and what they are called now."""


@dataclass
class Absent:
    """In place of what the installed version does not have: a class, a function, a member of an enumeration."""

    name: str


@dataclass
class AbsentConfiguration(Absent):
    """In place of an object of a configuration class that the installed version does not have."""

    settings: dict[str, Any]
    """As the file has them."""


class _RefusedError(Exception):
    """A file asks for what is not built."""


def load_config(path: Path) -> tuple[Any, list[str]]:
    """What a run's `config.yml` describes.

    Settings that it lacks, or whose value names what the installed version does not have, have their defaults; those
    that it does not know are left out; objects of a class that it does not have are an `AbsentConfiguration`.

    Returns:
        The configuration, and the names of all that the installed version does not know.

    Raises:
        UserError: if the file cannot be read or asks for anything else.
    """
    loader = None
    try:
        loader = _Loader(path.read_text("utf8"))
        return loader.get_single_data(), sorted(loader.left_out)
    except _RefusedError as error:
        raise UserError(
            f"{path} cannot be read ({error}): only settings of nerfstudio and its installed plugins "
            f"({', '.join(plugin_packages())}), paths and plain values are; if a plugin made the run, install it"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): is it whole?") from error
    # PyYAML's constructors meet nonsense in their own ways.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}): is it whole?") from error
    finally:
        if loader is not None:
            loader.dispose()


@cache
def plugin_packages() -> list[str]:
    """The packages whose classes a configuration may be made of: nerfstudio's and those of its installed plugins.

    They are imported by now, as nerfstudio imports its plugins to know their methods.
    """
    import nerfstudio.configs.method_configs  # noqa: F401

    modules = ["nerfstudio"]
    for kind in ("method", "dataparser"):
        modules += [point.module for point in entry_points(group=f"nerfstudio.{kind}_configs")]
        # NAME=MODULE:ATTRIBUTE, which is how nerfstudio knows methods that are not installed
        defined = os.environ.get(f"NERFSTUDIO_{kind.upper()}_CONFIGS", "")
        modules += [word.partition("=")[2].partition(":")[0] for word in defined.split(",")]
    return sorted({module.partition(".")[0] for module in modules} - {""})


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, and what else a configuration is made of."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.left_out: set[str] = set()

    def construct_tuple(self, node: Any) -> tuple:
        """`!!python/tuple`."""
        return tuple(self.construct_sequence(node, deep=True))

    def construct_name(self, name: str, node: yaml.Node) -> Any:
        """`!!python/name:`, a class or a function."""
        return self._find(name, node)

    def construct_configuration(self, name: str, node: yaml.Node) -> Any:
        """`!!python/object:`, a configuration class with its settings."""
        if not isinstance(node, yaml.MappingNode):
            raise _refusal(name, node)
        settings: Any = self.construct_mapping(node, deep=True)
        cls = self._find(RENAMED.get(name, name), node)
        if isinstance(cls, Absent):
            return AbsentConfiguration(name, settings)
        if not (isinstance(cls, type) and is_dataclass(cls)) or (
            cls.__module__.startswith("nerfstudio.") and not issubclass(cls, PrintableConfig)
        ):
            raise _refusal(name, node)
        return self._configuration(cls, settings, node)

    def _configuration(self, cls: type, settings: dict[str, Any], node: yaml.Node) -> Any:
        known = {setting.name: setting for setting in fields(cls)}
        settings = {
            RENAMED_SETTINGS.get(name, name) if name not in known else name: settings[name] for name in settings
        }
        configuration: Any = object.__new__(cls)
        for name, setting in known.items():
            value = settings.get(name, MISSING)
            if _without_use(value):
                value = MISSING
            if name == "_target" and value is not MISSING and not _is_class(value):
                raise _refusal(f"{getattr(value, '__name__', value)} as the _target of {cls.__name__}", node)
            if value is MISSING:
                factory: Any = setting.default_factory
                value = setting.default if factory is MISSING else factory()
            if value is MISSING:
                raise yaml.MarkedYAMLError(None, None, f"{cls.__name__} without its {name}", node.start_mark)
            object.__setattr__(configuration, name, value)
        self.left_out.update(f"{cls.__name__}.{name}" for name in settings if name not in known)
        return configuration

    def construct_value(self, name: str, node: yaml.Node) -> Any:
        """`!!python/object/apply:`, a path, a member of an enumeration or a generic class of another."""
        if not isinstance(node, yaml.SequenceNode):
            raise _refusal(name, node)
        arguments = self.construct_sequence(node, deep=True)
        if name in PATHS:
            return _path(arguments, windows="Windows" in name)
        if name in ("_operator.getitem", "builtins.getattr") and len(arguments) == 2:
            cls, argument = arguments
            if isinstance(cls, Absent):
                return cls
            if name == "_operator.getitem" and isinstance(cls, type) and isinstance(argument, (type, Absent)):
                return argument if isinstance(argument, Absent) else cls[argument]  # type: ignore[index]
            if name == "builtins.getattr" and isinstance(argument, str) and _is_enumeration(cls):
                return cls.__members__.get(argument, Absent(f"{cls.__name__}.{argument}"))
            raise _refusal(name, node)
        cls = self._find(name, node)
        if isinstance(cls, Absent):
            return cls
        if not _is_enumeration(cls) or len(arguments) != 1:
            raise _refusal(name, node)
        return next((member for member in cls if member.value == arguments[0]), Absent(f"{name}({arguments[0]!r})"))

    def construct_undefined(self, node: yaml.Node) -> Any:
        """Whatever else."""
        raise _refusal(node.tag.removeprefix(TAG), node)

    def _find(self, name: str, node: yaml.Node) -> Any:
        """A class or a function of nerfstudio, of a plugin, or of torch's optimizers."""
        module, _, attribute = name.rpartition(".")
        if module.partition(".")[0] not in plugin_packages() and not module.startswith("torch.optim."):
            raise _refusal(name, node)
        if module not in sys.modules or not hasattr(sys.modules[module], attribute):
            self.left_out.add(name)
            return Absent(name)
        found = getattr(sys.modules[module], attribute)
        # A module's own, and not what it has imported from elsewhere.
        home = getattr(found, "__module__", "")
        if not isinstance(found, (type, FunctionType)) or home.partition(".")[0] != module.partition(".")[0]:
            raise _refusal(name, node)
        return found


for _tag, _construct in (("tuple", _Loader.construct_tuple), ("unicode", yaml.SafeLoader.construct_yaml_str)):
    _Loader.add_constructor(TAG + _tag, _construct)
for _tag, _construct_named in (
    ("name:", _Loader.construct_name),
    ("object:", _Loader.construct_configuration),
    ("object/apply:", _Loader.construct_value),
):
    _Loader.add_multi_constructor(TAG + _tag, _construct_named)
_Loader.add_constructor(None, _Loader.construct_undefined)


def _refusal(name: str, node: yaml.Node) -> _RefusedError:
    return _RefusedError(f"line {node.start_mark.line + 1} asks for {name}")


def _is_class(value: Any) -> bool:
    return isinstance(value, type) or isinstance(get_origin(value), type)


def _is_enumeration(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Enum)


def _without_use(value: Any) -> bool:
    """Whether a setting's default does better than its value, which names what is not there."""
    if isinstance(value, list | tuple):
        return any(map(_without_use, value))
    return isinstance(value, Absent) and not isinstance(value, AbsentConfiguration)


def absent_in(value: Any) -> str | None:
    """The name of a class that is not there, if the value or anything in it is an object of one."""
    if isinstance(value, Absent):
        return value.name
    parts: Iterable[Any] = ()
    if isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    elif is_dataclass(value) and not isinstance(value, type):
        parts = vars(value).values()
    return next(filter(None, map(absent_in, parts)), None)


def _path(parts: list[Any], windows: bool) -> Path:
    """A path of this system; one of another that is not relative does not exist here, and keeps its looks."""
    if not windows:
        return Path(*parts)
    path = PureWindowsPath(*parts)
    return Path(str(path) if path.anchor else path.as_posix())
