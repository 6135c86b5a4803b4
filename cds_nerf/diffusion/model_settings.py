"""The settings that suit a diffusion model, which its folder can carry in a file; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cds_nerf.errors import UserError, way_out

SETTINGS_FILE = "cds_nerf.json"
"""In a model's folder: `{"guidance": {SCORE: {...}}, "image": {...}, "scene": {...}}`, all of it optional."""


@dataclass(frozen=True)
class ModelSettings:
    """What a model's file says; nothing for a model without one."""

    file: Path | None = None
    """Where it is."""
    guidance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each score, settings of `CDSGuidanceConfig` by name."""
    image: Mapping[str, Any] = field(default_factory=dict)
    """Settings of image edits by name, such as learning_rate."""
    scene: Mapping[str, Any] = field(default_factory=dict)
    """Options of `ns-train cds` by name, such as pipeline.w-keep."""

    @classmethod
    def read(cls, folder: Path) -> ModelSettings:
        """The settings in a model's folder.

        Raises:
            UserError: if the file is there and cannot be read, or holds something else.
        """
        file = folder / SETTINGS_FILE
        if not file.is_file():
            return cls()
        try:
            content = json.loads(file.read_text("utf8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the model's settings {file} cannot be read: {error}") from error
        sections = [section.name for section in fields(cls) if section.name != "file"]
        if not isinstance(content, dict):
            raise UserError(f"the model's settings {file} have no keys: there are {', '.join(sections)}")
        for name, section in content.items():
            if name not in sections:
                raise UserError(f"the model's settings {file} have {name!r}: {way_out(name, sections)}")
            for key, value in [(name, section), *(section.items() if name == "guidance" else ())]:
                if not isinstance(value, dict):
                    raise UserError(f"the model's settings {file} have {key} {value!r}: it must hold settings by name")
        return cls(file, **content)

    def untyped(
        self, section: str, settings: Any, typed: Collection[str] = (), allowed: Collection[str] | None = None
    ) -> dict[str, Any]:
        """What the model says of settings about which the user has said nothing.

        Args:
            section: "image", or "guidance." and the name of a score.
            settings: the dataclass that is to take them.
            typed: the fields that keep their values.
            allowed: the fields that a model may say something of, by default all.

        Returns:
            The values by the names of the fields, checked.

        Raises:
            UserError: if the model says something of another field, or a value that it cannot have.
        """
        name, _, score = section.partition(".")
        own = getattr(self, name).get(score, {}) if score else getattr(self, name)
        allowed = [f.name for f in fields(settings)] if allowed is None else allowed
        taken = {}
        for key, value in own.items():
            where = f"the model's settings {self.file} have {section}.{key}"
            if key not in allowed:
                raise UserError(f"{where}: {way_out(key, allowed)}")
            value = tuple(value) if isinstance(value, list) else value
            default = getattr(settings, key)
            if default is not None and not is_like(value, default):
                raise UserError(f"{where} {value!r}: it must be like {default!r}")
            if key not in typed:
                taken[key] = value
        try:
            replace(settings, **taken)
        except UserError as error:
            raise UserError(f"the model's settings {self.file}: {error}") from error
        return taken

    def for_scene(self, score: str) -> dict[str, Any]:
        """What the model says of an edit of a scene, by the dotted paths of the fields of ns-train's configuration.

        Args:
            score: of the guidance.
        """
        guidance = {f"pipeline.guidance.{key}": value for key, value in self.guidance.get(score, {}).items()}
        return {key.replace("-", "_"): value for key, value in (guidance | dict(self.scene)).items()}


def is_like(value: Any, default: Any) -> bool:
    """Whether a value of a file is of the type of a field's default."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
