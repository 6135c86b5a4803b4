"""Demos with settings of their own, for the benchmarks beside it: what is done is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cds_nerf.shapes.dataset import edit_name
from cds_nerf.shapes.demo import BUNDLED_RECIPE, SPLAT_RECIPE

SOURCE = "a photo of a red cube on a wooden floor"
"""Caption of the scene; each seed draws another."""
RECIPES = {"nerf": BUNDLED_RECIPE, "splats": SPLAT_RECIPE}
"""What the demo follows, by its --field."""
Quality = dict[str, dict[str, float]]
"""The measures of `SceneQuality` by name, "before" and "after" the edit."""


def mean_and_worst(values: Sequence[float], form: str, worst: Callable[[Sequence[float]], float] = min) -> str:
    """A cell of a table: the mean over the seeds, and the worst of them in brackets."""
    return f"{sum(values) / len(values):{form}} ({worst(values):{form}})"


def demo_folder(output: Path, kind: str, seed: int) -> Path:
    """Where all edits of a scene are."""
    return output / f"{kind}-{seed}"


def demo_quality(
    output: Path,
    kind: str,
    seed: int,
    target: str,
    label: str,
    edit: Mapping[str, Any],
    source: str = SOURCE,
    detail: bool = False,
) -> Quality:
    """Run a demo where it has not been, with one thread; edits of one scene one after the other.

    Args:
        output: folder for everything.
        kind: of field, one of `RECIPES`.
        seed: of the demo.
        target: caption of the edit.
        label: tells the settings apart.
        edit: settings over those of the recipe's edit; None takes one away.
        source: caption of the scene.
        detail: whether the scene has some.

    Raises:
        CalledProcessError: if the demo fails; its log lies in `output`.
    """
    name = f"{edit_name(target)}-{label}"
    folder = demo_folder(output, kind, seed)
    result = folder / name / "quality.json"
    if not result.exists():
        recipe = yaml.safe_load(RECIPES[kind].read_text("utf8"))
        own = output / f"{kind}-{seed}-{name}.yaml"
        own.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: value for key, value in (recipe["edit"] | edit).items() if value is not None}
        own.write_text(yaml.safe_dump(recipe | {"name": name, "edit": settings}), "utf8")
        words = ["--source", source, "--target", target, "--seed", str(seed), "--recipe", str(own)]
        words += ["--detail"] if detail else []
        with own.with_suffix(".log").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "cds_nerf.cli", "demo", *words, "--output", str(folder)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                check=True,
            )
    return json.loads(result.read_text("utf8"))
