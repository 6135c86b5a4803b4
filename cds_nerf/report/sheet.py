"""Edits on one contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from cds_nerf.evaluation.contact_sheet import contact_sheet
from cds_nerf.evaluation.edit_metrics import EditedViews

VIEWS = 6
"""How many views of each edit are shown, at most."""


def sheet_of_edits(edits: Sequence[EditedViews]) -> Image.Image:
    """Each edit's views before and after it, one row below the other."""
    rows = {}
    for edit in edits:
        rows[_label(edit.name, "before", edit.source_prompt)] = _some(edit.before)
        rows[_label(edit.name, "after", edit.target_prompt)] = _some(edit.after)
    return contact_sheet(rows)


def _label(name: str, when: str, prompt: str | None) -> str:
    return f"{name}, {when}" + (f": {prompt}" if prompt else "")


def _some(pictures: Sequence[Float[Tensor, "3 height width"]]) -> list[Image.Image]:
    step = max(len(pictures) // VIEWS, 1)
    return [to_pil_image((picture * 255).round().byte()) for picture in pictures[::step][:VIEWS]]
