"""The scores and weights that the benchmarks of images and of fields compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

STRUCTURE = {"contrastive_layers": (1, 2), "contrastive_query": "target"}
"""The layers of the bundled UNet that tell structure from colour best, and the paper's query."""
RELATIONS = {"contrastive_loss": "relations", "contrastive_layers": (1, 2)}
"""The contrastive loss between relations, on the same layers."""
RUNS: dict[str, dict[str, Any]] = {
    "dds": {"score": "dds"},
    "cds, w_cut 15": {"score": "cds"},
    "cds, relative 0.3": {"score": "cds", "relative_w_cut": 0.3},
    "cds, relative 0.1, layers 1 2, target": {"score": "cds", "relative_w_cut": 0.1, **STRUCTURE},
    "cds, relations, w_cut 100, layers 1 2": {"score": "cds", "w_cut": 100.0, **RELATIONS},
    "dds, decreasing": {"score": "dds", "timestep_schedule": "decreasing"},
    "sds": {"score": "sds"},
    "sds, relative 0.3": {"score": "sds", "relative_w_cut": 0.3},
    "pds": {"score": "pds"},
    "pds, relative 0.3": {"score": "pds", "relative_w_cut": 0.3},
    "ids": {"score": "ids"},
    "ids, relative 0.3": {"score": "ids", "relative_w_cut": 0.3},
}
"""What is compared: settings of `CDSGuidanceConfig`, over those that suit the model and the score's paper's own."""
LAYERS: dict[str, dict[str, Any]] = {
    f"layers {' '.join(map(str, layers)) or 'all'}, query {query}": {
        "score": "cds",
        "relative_w_cut": 0.3,
        "contrastive_layers": layers,
        "contrastive_query": query,
    }
    for query in ("source", "target")
    for layers in ((), (0,), (1,), (2,), (3,), (1, 2))
}
"""Which self-attentions take part, from coarse to fine, and who queries: an ablation."""
QUICK = (
    "dds",
    "cds, w_cut 15",
    "cds, relative 0.1, layers 1 2, target",
    "cds, relations, w_cut 100, layers 1 2",
)
"""What the quick mode compares, and what is compared in fields, whose edits take a hundred times as long."""


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """A cell of a table: the mean over the seeds, ± their standard deviation."""
    numbers = torch.tensor(values)
    spread = f" ± {numbers.std():{form}}" if len(values) > 1 else ""
    return f"{numbers.mean():{form}}{spread}"


def without_contrastive_loss(name: str) -> str:
    """The name in `RUNS` of the same score without the contrastive loss, which may be the run itself."""
    score, *settings = name.split(", ")
    kept = [setting for setting in settings if setting == "decreasing"]
    return ", ".join(["dds" if score == "cds" else score, *kept])


def label_of(name: str) -> str:
    """A run's name as files may be called."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)
