"""What a relative contrastive weight remembers, beside a run's checkpoints: a resumed edit goes on with it.

The checkpoints hold the field alone, as nerfstudio's own do.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from cds_nerf.errors import UserAdvice, UserError
from cds_nerf.files import whole_file
from cds_nerf.guidance import CDSGuidance

RECORD = "gradient_strengths.json"
"""In the run folder: by the step of each checkpoint, what `GradientStrengths.state` gave."""


def save_strengths(guidance: CDSGuidance, run_folder: Path, step: int) -> None:
    """Write what is remembered after a step; to be called before its checkpoint is written, so that no one lacks it.

    Nothing is written where nothing is remembered, as without a relative weight.

    Raises:
        UserError: if the file cannot be written.
    """
    state = guidance.strengths.state()
    if state is None:
        return
    path = run_folder / RECORD
    record = _read(path)
    with whole_file(path) as file:
        file.write_text(json.dumps(record | {str(step): state}), "utf8")


def load_strengths(guidance: CDSGuidance, run_folder: Path, step: int) -> None:
    """Remember what was remembered after the step that a checkpoint is of; -1 where the edit begins.

    Advice says where that is not known although the weight is relative.

    Raises:
        UserError: if there is a file that cannot be read.
    """
    path = run_folder / RECORD
    record = _read(path)
    guidance.strengths.load(record.get(str(step)))
    if step >= 0 and str(step) not in record and guidance.config.relative_w_cut:
        warnings.warn(
            f"{path} knows nothing of step {step}: what the contrastive weight is relative to is measured anew",
            UserAdvice,
            stacklevel=2,
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): bring it back, or move it away, and the edit goes on with what the "
            "contrastive weight is relative to measured anew"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is no record of an edit: move it away")
    return record
