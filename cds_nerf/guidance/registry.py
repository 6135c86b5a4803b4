"""The scores by name: ours, and those that installed packages register as entry points of `cds_nerf.scores`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from cds_nerf.errors import UserError

if TYPE_CHECKING:
    from cds_nerf.guidance.score import Score

GROUP = "cds_nerf.scores"
"""The entry point group of other packages' scores: each entry a name and the class, as `module:Class`."""

SCORES = {
    "cds": "cds_nerf.guidance.cds:CDS",
    "dds": "cds_nerf.guidance.dds:DDS",
    "sds": "cds_nerf.guidance.sds:SDS",
    "pds": "cds_nerf.guidance.pds:PDS",
    "ids": "cds_nerf.guidance.ids:IDS",
}


def score_names() -> list[str]:
    """All scores that can be asked for."""
    return [*SCORES, *(entry.name for entry in entry_points(group=GROUP))]


@cache
def score_class(name: str) -> type[Score]:
    """The score of a name; its module is imported now.

    Raises:
        UserError: if there is none, or its package cannot be imported; the message says which there are, or why.
    """
    if name in SCORES:
        module, _, attribute = SCORES[name].partition(":")
        return getattr(import_module(module), attribute)
    others = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in others:
        raise UserError(f"score is {name!r}; it must be one of {', '.join([*SCORES, *others])}")
    return _load(others[name])


def _load(entry: Any) -> type[Score]:
    from cds_nerf.guidance.score import Score

    try:
        loaded = entry.load()
    except Exception as error:  # whatever the import of another package's module ends with
        raise UserError(
            f"score is {entry.name!r}, whose {entry.value} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Score)):
        raise UserError(f"score is {entry.name!r}, whose {entry.value} is no subclass of cds_nerf.guidance.Score")
    return loaded
