"""What may change while an edit runs: each change from a step on, in a log by which the edit can be repeated."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.guidance import CDSGuidanceConfig
from cds_nerf.guidance.config import PaperDefault
from cds_nerf.typed_options import set_value_at, value_at

LOG = "live_changes.json"
"""In the run folder: by step, which settings have which values from it on, and before which the field was given up."""

LIVE_SETTINGS = (
    "source_prompt",
    "target_prompt",
    "w_keep",
    "guidance.score",
    "guidance.guidance_scale",
    "guidance.w_dds",
    "guidance.w_cut",
    "guidance.min_timestep",
    "guidance.max_timestep",
    "guidance.timestep_schedule",
    "region.kind",
    "region.text",
    "region.ramp",
    "region.box_center",
    "region.box_rotation",
    "region.box_scale",
)
"""Of the pipeline's configuration; each is a text, a number or several."""

OF_REGION = "region."
PROMPT_NAMES = ("source_prompt", "target_prompt")
TEXTS = frozenset({*PROMPT_NAMES, "guidance.score", "guidance.timestep_schedule", "region.kind", "region.text"})
COUNTS = {"region.ramp": 2, "region.box_center": 3, "region.box_rotation": 3, "region.box_scale": 3}
"""How many numbers those have that are not one."""

FIELD, SOURCE = "field", "source"
"""What a log says of a step before which the edit went back to the source's field."""

Changes = dict[int, dict[str, Any]]


class LiveSettings:
    """The live settings of an edit at each step.

    Args:
        config: of the pipeline; what it says holds until the first change.
        log: the file of the changes, which need not be there yet.

    Raises:
        UserError: if the log cannot be read.
    """

    def __init__(self, config: Any, log: Path) -> None:
        self.log = log
        self.at_first = {path: value_at(config, path) for path in LIVE_SETTINGS}
        self._changes = read_changes(log) if log.exists() else {}

    def at(self, step: int) -> dict[str, Any]:
        """All live settings at a step."""
        values = dict(self.at_first)
        for since, changed in sorted(self._changes.items()):
            if since <= step:
                values |= {path: value for path, value in changed.items() if path != FIELD}
        return values

    def returns_at(self, step: int) -> bool:
        """Whether the edit goes back to the source's field before a step."""
        return FIELD in self._changes.get(step, {})

    def note_return(self, step: int) -> None:
        """Write down that the edit goes back to the source's field before a step, and not, as the log had it, later.

        Raises:
            UserError: if the log cannot be written.
        """
        self._put(step, {FIELD: SOURCE})

    def change(self, step: int, values: Mapping[str, Any], config: Any, fits: Callable[[Any], None]) -> list[str]:
        """Set something from a step on, and write it down. What the log had for the same settings later on is over.

        Args:
            step: the first with the new values.
            values: by setting; numbers may be a text that says them.
            config: of the pipeline, as it is at the step; it is left as it is.
            fits: raises a UserError if the diffusion model cannot take a configuration.

        Returns:
            The settings that have another value now. A score brings those numbers of its own that nobody has told.

        Raises:
            UserError: if a value cannot be used, or the log cannot be written; nothing is changed then.
        """
        changed = deepcopy(config)
        if values.get("guidance.score", config.guidance.score) != config.guidance.score:
            _untell_own_numbers(changed.guidance)
        for path, value in values.items():
            set_value_at(changed, path, _read(path, value))
        check_live_settings(changed)
        new = {path: value for path in LIVE_SETTINGS if (value := value_at(changed, path)) != value_at(config, path)}
        changed.region.check_acts(path.removeprefix(OF_REGION) for path in new if path.startswith(OF_REGION))
        fits(changed)
        if new:
            self._put(step, new)
        return list(new)

    def _put(self, step: int, new: dict[str, Any]) -> None:
        changes = {
            since: {path: value for path, value in old.items() if since < step or path not in new}
            for since, old in self._changes.items()
        }
        changes[step] = changes.get(step, {}) | new
        changes = {since: those for since, those in changes.items() if those}
        write_changes(changes, self.log)
        self._changes = changes


def check_live_settings(config: Any) -> None:
    """Check the live settings of a pipeline's configuration as the command line's are, and settle its guidance.

    Raises:
        UserError: if one cannot be used; the message says which, its value and what it must be.
    """
    check_prompts(config.source_prompt, config.target_prompt, PROMPT_NAMES)
    if not 0 <= config.w_keep < math.inf:
        raise UserError(f"w_keep is {config.w_keep}; it must be at least 0")
    config.guidance.settle()
    config.region.terms()


def read_changes(path: Path) -> Changes:
    """The changes of a log.

    Raises:
        UserError: if it cannot be read, or is no such log.
    """
    try:
        changes = json.loads(path.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): it says what was changed live; bring it back") from error
    try:
        read = {int(step): dict(values) for step, values in changes.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no log of live changes, as {LOG} in an edit's run folder is") from error
    for values in read.values():
        for setting, value in values.items():
            if setting == FIELD:
                if value != SOURCE:
                    raise UserError(f"{path} sets {FIELD} to {value!r}; it can be set to {SOURCE!r} alone")
                continue
            if setting not in LIVE_SETTINGS:
                raise UserError(f"{path} changes {setting}; what can be changed live is {', '.join(LIVE_SETTINGS)}")
            if not _is_a_value(setting, value):
                raise UserError(f"{path} sets {setting} to {value!r}; it must be {_kind(setting)}")
            if setting in COUNTS:
                values[setting] = tuple(value)
    return read


def write_changes(changes: Changes, path: Path) -> None:
    """Write a log, whole at any moment.

    Raises:
        UserError: if it cannot be written.
    """
    with whole_file(path) as file:
        file.write_text(json.dumps(dict(sorted(changes.items())), indent=1, ensure_ascii=False), "utf8")


def _untell_own_numbers(guidance: CDSGuidanceConfig) -> None:
    """Let another score bring its own numbers in place of the score's own; a run's config.yml has them as told."""
    own = CDSGuidanceConfig(score=guidance.score)
    for field in fields(own):
        value = getattr(own, field.name)
        if isinstance(value, PaperDefault) and getattr(guidance, field.name) == value:
            setattr(guidance, field.name, value)


def _read(path: str, value: Any) -> Any:
    """A setting's value, as it is or as a text says it."""
    name = path.rpartition(".")[2]
    if path in TEXTS:
        return str(value)
    try:
        if path not in COUNTS:
            return float(value)
        numbers = tuple(map(float, re.findall(r"[^\s,()]+", value) if isinstance(value, str) else value))
    except ValueError as error:
        raise UserError(f"{name} is {value!r}; it must be {_kind(path)}") from error
    if len(numbers) != COUNTS[path] or not all(map(math.isfinite, numbers)):
        raise UserError(f"{name} is {value!r}; it must be {_kind(path)}")
    return numbers


def _is_a_value(path: str, value: Any) -> bool:
    """Whether a log's value is of the setting's kind."""
    if path in COUNTS:
        is_list = isinstance(value, list) and len(value) == COUNTS[path]
        return is_list and all(_is_a_value("", number) for number in value)
    return isinstance(value, str if path in TEXTS else int | float) and not isinstance(value, bool)


def _kind(path: str) -> str:
    if path in COUNTS:
        return {2: "two", 3: "three"}[COUNTS[path]] + " numbers"
    return "a text" if path in TEXTS else "a number"
