"""Fields of the bundled world with detail, edited by each score."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compared_scores import RUNS, label_of, mean_and_spread
from demo_runs import Quality, demo_quality

from cds_nerf.shapes.scene import ATTRIBUTES, Scene

MEASURES = {
    "with_target": ("success, %", ".0f", 100.0),
    "psnr": ("PSNR to the true edit, dB", ".1f", 1.0),
    "psnr_outside": ("outside, dB", ".1f", 1.0),
    "silhouette": ("silhouette", ".2f", 1.0),
    "detail": ("detail kept", ".2f", 1.0),
}
"""The measures of `SceneQuality` that are shown, with heading, form and factor."""


@dataclass
class FieldScores:
    """Edits of fields, by the demo's recipe but for the guidance and the region."""

    kind: str = "splats"
    """Of field: splats or nerf."""
    output: Path = Path("outputs/scores")
    """Folder for everything."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Demos that run at a time, one thread each."""

    def prepare(
        self, attributes: tuple[str, ...], regions: tuple[str, ...], names: tuple[str, ...], seeds: tuple[int, ...]
    ) -> None:
        """Run what is not there: scenes side by side, the edits of each one after the other."""

        def edits_of(seed: int) -> None:
            for attribute in attributes:
                for region in regions:
                    for name in names:
                        self._quality(attribute, seed, name, region)

        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(edits_of, seeds))

    def section(self, attribute: str, region: str, names: tuple[str, ...], seeds: tuple[int, ...]) -> list[str]:
        """The lines of a table; arguments as `ImageScores.section`, but that the region is the field's own "auto"."""
        lines = [f"| score | {' | '.join(heading for heading, _, _ in MEASURES.values())} |"]
        lines.append(f"| --- |{' ---: |' * len(MEASURES)}")
        rows = {"unedited": [self._quality(attribute, seed, names[0], region)["before"] for seed in seeds]} | {
            name: [self._quality(attribute, seed, name, region)["after"] for seed in seeds] for name in names
        }
        for name, found in rows.items():
            cells = [
                mean_and_spread([factor * one[key] for one in found], form)
                for key, (_, form, factor) in MEASURES.items()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines

    def _quality(self, attribute: str, seed: int, name: str, region: str) -> Quality:
        source, target = edit_of_seed(attribute, seed)
        label = label_of(name) + f"-region-{region}"
        settings = {f"pipeline.guidance.{key.replace('_', '-')}": value for key, value in _plain(RUNS[name])}
        if region == "off":
            settings |= {
                "pipeline.region.kind": "none",
                "pipeline.region.ramp": None,
                "pipeline.region.follow-edges": None,
            }
        return demo_quality(
            self.output, self.kind, seed, target.caption, label, settings, source=source.caption, detail=True
        )


def edit_of_seed(attribute: str, seed: int) -> tuple[Scene, Scene]:
    """The scene of a seed, and what an edit of one of its attributes makes of it."""
    draw = random.Random(f"field/{seed}")
    source = Scene.draw(draw)
    words = {
        name: draw.choice([word for word in values if word != getattr(source, name)])
        for name, values in ATTRIBUTES.items()
    }
    return source, replace(source, **{attribute: words[attribute]})


def _plain(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """As a recipe is written."""
    for name, value in settings.items():
        yield name, list(value) if isinstance(value, tuple) else value
