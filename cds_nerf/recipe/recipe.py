"""What a recipe may say."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cds_nerf.diffusion.model_name import DEFAULT_MODEL
from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError, way_out

SOURCE_METHODS = {"nerf": "cds-source", "splats": "cds-splat-source"}
"""The kinds of fields that a recipe can reconstruct, and the methods of ns-train that make them."""


@dataclass(frozen=True)
class Recipe:
    """One edit, from what was captured to the edited video. Relative paths start from the working directory."""

    source_prompt: str
    """Describes the scene as it is, such as "a photo of a fox"."""
    target_prompt: str
    """Describes the scene as it should become, such as "a photo of a wolf"."""
    output: Path
    """Folder for all that is made: the runs in cds-source/ (or cds-splat-source/) and cds/, pictures of the held-out
    views in held_out/."""
    capture: Path | None = None
    """The data to reconstruct, as for ns-train's --data. Needed where source_run is not given."""
    source_run: Path | None = None
    """The folder of a run to edit; the source stage is left out then. Its data is taken from the capture, if given."""
    field: str = "nerf"
    """What the capture is reconstructed as: nerf (by cds-source) or splats (by cds-splat-source)."""
    diffusion: str = DEFAULT_MODEL
    """The diffusion model: a hub id, a diffusers folder, a .safetensors checkpoint, or "shapes" for the bundled one."""
    name: str | None = None
    """Of the edit, for its folders; by default made of the target prompt. Another name makes another edit."""
    seed: int = 0
    """Of both stages."""
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `ns-train cds-source`, or cds-splat-source, by name, such as `pipeline.model.num-levels: 8`."""
    edit: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `ns-train cds` by name, such as `pipeline.guidance.w-cut: 30`."""


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; its options of ns-train are left to `train_options`.

    Raises:
        UserError: if the file cannot be read, a key is unknown or missing, or a value cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text("utf8"))
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"the recipe {path} has no keys; it needs {', '.join(_needed())}")
    try:
        return _recipe(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _needed() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe) if f.default is f.default_factory is dataclasses.MISSING]


def _recipe(content: dict[Any, Any]) -> Recipe:
    keys = [f.name for f in dataclasses.fields(Recipe)]
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in keys:
            raise UserError(f"{key!r} is no key of a recipe: {way_out(name, keys)}")
        values[name] = _checked(name, value)
    for name in _needed():
        if name not in values:
            raise UserError(f"{name} is missing")
    recipe = Recipe(**{name: value for name, value in values.items() if value is not None})
    check_prompts(recipe.source_prompt, recipe.target_prompt)
    if recipe.capture is None and recipe.source_run is None:
        raise UserError("capture is missing: give the data to reconstruct, or a source_run to edit")
    if "field" in values and recipe.source_run is not None:
        raise UserError("field says how a capture is reconstructed, but there is a source_run: give one of them")
    return recipe


def _checked(name: str, value: Any) -> Any:
    """A key's value as the recipe holds it; None where the key is there without one."""
    if name in ("source", "edit"):
        if not isinstance(value or {}, dict):
            raise UserError(f"{name} is {value!r}; it must hold options, such as max-num-iterations: 300")
        return value or {}
    if name == "seed":
        if type(value) is not int or not 0 <= value < 2**32:  # numpy takes no other
            raise UserError(f"seed is {value!r}; it must be a whole number from 0 to 2^32 - 1")
        return value
    if name in ("capture", "source_run", "name") and value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} is {value!r}; it must be a text")
    if name == "field" and value not in SOURCE_METHODS:
        raise UserError(f"field is {value!r}: {way_out(value, SOURCE_METHODS)}")
    if name == "name" and ("/" in value or value.startswith(".") or value == "source"):
        raise UserError(f"name is {value!r}; it must be a folder's name, without / or a dot before it, and not source")
    if name not in ("capture", "source_run", "output"):
        return value
    path = Path(value).expanduser()
    if name != "output" and not path.exists():
        raise UserError(f"{name} is {value}, which does not exist")
    return path
