"""Whether an edit needs half the steps with two views a step: the demo's edits over steps and views per step.

    python benchmarks/views_per_step.py [--seeds 0 1 2] [--kind splats] [--output outputs/views_per_step]

Each seed is another scene of the same caption; all rates decay over the steps that there are. Edits of as many views
together cost as much. What is done is kept. The table has the mean over the seeds, and the worst of them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from demo_edits import COLUMNS
from demo_runs import Quality, demo_quality, mean_and_worst


@dataclass
class ViewsPerStepBenchmark:
    """Run the demo with several numbers of steps and views per step."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the demo."""
    kind: Literal["nerf", "splats"] = "splats"
    """As the demo's --field."""
    target: str = "a photo of a blue cube on a wooden floor"
    """Caption of the edit."""
    steps: tuple[int, ...] = (20, 40, 80, 160)
    """Numbers of steps."""
    views: tuple[int, ...] = (1, 2)
    """Views per step."""
    output: Path = Path("outputs/views_per_step")
    """Folder for everything."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Demos that run at a time, one thread each."""

    def run(self) -> None:
        """Run what is not there, and print a table."""
        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(self._edits_of_a_scene, self.seeds))
        print(f"| steps | views per step | views | {' | '.join(heading for heading, _ in COLUMNS.values())} |")
        print(f"| ---: | ---: | ---: |{' ---: |' * len(COLUMNS)}")
        for steps in self.steps:
            for views in self.views:
                found = [self._quality(seed, steps, views)["after"] for seed in self.seeds]
                cells = [mean_and_worst([one[key] for one in found], form) for key, (_, form) in COLUMNS.items()]
                print(f"| {steps} | {views} | {steps * views} | {' | '.join(cells)} |", flush=True)

    def _edits_of_a_scene(self, seed: int) -> None:
        """All of a scene's edits, one after the other, since they share their source."""
        for steps in self.steps:
            for views in self.views:
                self._quality(seed, steps, views)

    def _quality(self, seed: int, steps: int, views: int) -> Quality:
        settings = {"max-num-iterations": steps, "pipeline.views-per-step": views}
        return demo_quality(self.output, self.kind, seed, self.target, f"{steps}-steps-{views}-views", settings)


if __name__ == "__main__":
    tyro.cli(ViewsPerStepBenchmark).run()
