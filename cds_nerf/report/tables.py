"""Metrics of edits as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence

from cds_nerf.evaluation.edit_metrics import METRICS, EditedViews, mean

Measured = Mapping[str, Sequence[float]]
"""The values of each metric by its name, one a view."""


def markdown_table(edits: Mapping[str, Measured]) -> str:
    """One row a metric, one column an edit; what an edit has not is left empty."""
    names = [name for name in METRICS if any(name in measured for measured in edits.values())]
    lines = [f"| | {' | '.join(edits)} |", f"| --- |{' ---: |' * len(edits)}"]
    for name in names:
        cells = [_cell(mean(measured[name])) if name in measured else "" for measured in edits.values()]
        lines.append(f"| {METRICS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(views: Sequence[EditedViews], edits: Sequence[Measured], left_out: Mapping[str, str]) -> str:
    """Means and the values of each view, by edit; and what was left out, with the reason."""
    content = {
        "edits": [
            {
                "name": edit.name,
                "source_prompt": edit.source_prompt,
                "target_prompt": edit.target_prompt,
                "views": list(edit.view_names),
                "mean": {name: _number(mean(values)) for name, values in measured.items()},
                "by_view": {name: [_number(value) for value in values] for name, values in measured.items()},
            }
            for edit, measured in zip(views, edits, strict=True)
        ],
        "left_out": dict(left_out),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_csv(views: Sequence[EditedViews], edits: Sequence[Measured]) -> str:
    """A row for each edit, view and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["edit", "view", "metric", "value"])
    for edit, measured in zip(views, edits, strict=True):
        for name, values in measured.items():
            writer.writerows(
                [edit.name, view, name, value] for view, value in zip(edit.view_names, values, strict=False)
            )
    return text.getvalue()


def _cell(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _number(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
