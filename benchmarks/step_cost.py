"""What an edit costs before its first step, in each step and after the last, and how that grows.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --views 300 --steps 1000 --simulate

The first makes small edits of untrained fields with the bundled diffusion model: one step split into its parts, in
seconds and in counts, and the same for larger views, more of them, more draws and views a step, and other fields. The
second counts a whole edit with a tiny diffusion model and a tiny field: numbers of views and steps decide the counts,
and neither what the models say nor how large they are. Waits for the device, which cost time to count, are left out.

Times are CPU seconds of this machine, so that what else it does counts for little. Counts are the same on all:
benchmarks/edit_counts.py says what each of them is, and benchmarks/device_waits.py where the host would wait for a GPU.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from edit_counts import (
    COUNTS,
    ENCODE,
    GAUSSIANS,
    OTHER,
    PHASES,
    RAYS,
    UNET,
    EditCounts,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from small_edit import edit_config_for, fresh, run, train_source, train_splat_source, write_capture
from tiny_stable_diffusion import make_pipeline

from cds_nerf.nerf.method import cds_source
from cds_nerf.shapes import prior_path

SOURCE, TARGET = "a photo of a red cube on a wooden floor", "a photo of a blue cube on a wooden floor"
DEMO_FIELD = {
    "num_levels": 8,
    "log2_hashmap_size": 14,
    "max_res": 512,
    "hidden_dim": 32,
    "hidden_dim_color": 32,
    "num_proposal_samples_per_ray": (48,),
    "num_nerf_samples_per_ray": 24,
}
"""The demo's nerfacto."""
RELEVANCE_BEFORE = 16
"""UNet samples that each view's relevance took before the first step, for all views, before regions were gathered."""


@dataclass(frozen=True)
class Setting:
    """What an edit is made of, as far as its cost goes."""

    field: str = "nerfacto"
    """nerfacto, tiny or splats."""
    gaussians: int = 20000
    """How many the splats have."""
    size: int = 64
    """Sides of the views that the guidance sees, in pixels."""
    views: int = 12
    """Of the capture."""
    draws: int = 1
    """Draws per view."""
    views_per_step: int = 1
    """Views of each step."""
    steps: int = 5
    """Of the edit; the first, which has a strip, is left out of what a step costs."""
    orbit_frames: int = 12
    """Of the video."""


SMALL = Setting(size=32, orbit_frames=4)
VARIANTS = {
    "as in the demo": Setting(),
    "views of 32 pixels": SMALL,
    "views of 48 pixels": replace(SMALL, size=48),
    "24 views": replace(SMALL, views=24),
    "2 draws per view": replace(SMALL, draws=2),
    "4 draws per view": replace(SMALL, draws=4),
    "2 views per step": replace(SMALL, views_per_step=2),
    "4 views per step": replace(SMALL, views_per_step=4),
    "10,000 splats": replace(SMALL, field="splats", gaussians=10000),
    "20,000 splats": replace(SMALL, field="splats"),
    "20,000 splats, 64 pixels": replace(SMALL, field="splats", size=64),
}
"""An edit, and smaller ones: 12 views of 32 pixels, a nerfacto, one draw and one view a step, or as they say."""


@dataclass
class StepCostBenchmark:
    """Split and count the cost of a step; or, with --simulate, count a whole edit."""

    simulate: bool = False
    """Count an edit of so many views and steps with a tiny model and a tiny field."""
    views: int = 300
    """Of the simulated edit."""
    steps: int = 1000
    """Of the simulated edit."""
    draws: int = 1
    """Draws per view of the simulated edit."""
    views_per_step: int = 1
    """Views per step of the simulated edit."""
    orbit_frames: int = 60
    """Frames of its video."""
    only: tuple[str, ...] = ()
    """Which of the small edits are made; all if none is given."""
    places: bool = False
    """Say where the first one's steps wait for the device."""

    def run(self) -> None:
        """Print the tables."""
        if self.simulate:
            self._simulate()
        else:
            self._small_edits()

    def _simulate(self) -> None:
        setting = Setting(
            "tiny",
            size=16,
            views=self.views,
            draws=self.draws,
            views_per_step=self.views_per_step,
            steps=self.steps,
            orbit_frames=self.orbit_frames,
        )
        with tempfile.TemporaryDirectory() as folder:
            counts = edit(setting, Path(folder), tiny_prior=True, waits=False)
        print(f"{self.views} views, {self.steps} steps\n")
        print_stages(counts)
        relevance = RELEVANCE_BEFORE * self.views
        print(
            f"\nWith the relevance of all views made before the first step, {RELEVANCE_BEFORE} samples each: "
            f"{relevance} UNet samples before it, {self.views} views rendered and encoded."
        )

    def _small_edits(self) -> None:
        names = self.only or tuple(VARIANTS)
        with tempfile.TemporaryDirectory() as folder:
            # Counting waits takes time of its own, and what is timed must not know of it.
            first = edit(VARIANTS[names[0]], Path(folder))
            timed = {name: edit(VARIANTS[name], Path(folder), waits=False) for name in names}
        print(f"{torch.get_num_threads()} thread(s)\n\n**One step**, {names[0]}\n")
        print_split(first, timed[names[0]])
        print("\n**The whole edit**\n")
        print_stages(first)
        print("\n**How a step grows**\n")
        print_growth(timed)
        if self.places:
            print("\nwaits in the steps:")
            for (kind, place), times in first.places.most_common():
                print(f"{times / len(first.steps):8.1f} {kind} a step at {place}")


def edit(setting: Setting, folder: Path, tiny_prior: bool = False, waits: bool = True) -> EditCounts:
    """Make a source and edit it, and count what the edit does.

    Args:
        setting: of the edit.
        folder: for everything; sources that are there already are taken.
        tiny_prior: a tiny random diffusion model in place of the bundled one.
        waits: whether waits for the device are counted.
    """
    capture = folder / f"capture-{setting.views}"
    source = folder / f"{setting.field}-{setting.gaussians}-{setting.views}"
    if not capture.exists():
        write_capture(capture, setting.views, camera_model="PINHOLE", size=(64, 64))
    if not source.exists():
        make_source(setting, capture, source)
    (source_run,) = {path.parent for path in source.rglob("config.yml")}
    prior = prior_path()
    if tiny_prior:
        prior = folder / "prior"
        make_pipeline().save_pretrained(prior)
    config = edit_config_for(
        source_run,
        prior,
        Path(tempfile.mkdtemp(dir=folder)),
        prompt=TARGET,
        pipeline__source_prompt=SOURCE,
        pipeline__guidance_resolution=setting.size,
        pipeline__draws_per_view=setting.draws,
        pipeline__views_per_step=setting.views_per_step,
        pipeline__orbit_frames=setting.orbit_frames,
        max_num_iterations=setting.steps,
    )
    counts = EditCounts(waits)
    with redirect_stdout(sys.stderr), counts.watching():
        run(config)
    return counts


def make_source(setting: Setting, capture: Path, output: Path) -> None:
    if setting.field == "splats":
        train_splat_source(capture, output, num_random=setting.gaussians, refine_every=1000)
    else:
        train_source(fresh(cds_source.config), capture, output, **(DEMO_FIELD if setting.field == "nerfacto" else {}))


def print_split(counts: EditCounts, timed: EditCounts) -> None:
    """A row for each part of a step: seconds, shares and counts, on the mean."""
    steps = counts.steps[1:]
    seconds = {part: mean(step.seconds[part] for step in timed.steps[1:]) for part in (*PHASES, OTHER)}
    shown = [what for what in COUNTS if any(step.total(what) for step in steps)]
    header("", "seconds", "share", *shown)
    for part in seconds:
        found = [mean(step.counts.get(part, {}).get(what, 0) for step in steps) for what in shown]
        if seconds[part] or any(found):
            share = seconds[part] / sum(seconds.values())
            row(part, f"{seconds[part]:.3f}", f"{share:.0%}", *map(number, found))
    totals = [mean(step.total(what) for step in steps) for what in shown]
    row("all", f"{sum(seconds.values()):.3f}", "", *map(number, totals))


def print_stages(counts: EditCounts) -> None:
    """A row for each thing that is counted: before the first step, in all steps, and after."""
    header("", "before the first step", "in the steps", "a step", "after")
    for what in COUNTS:
        steps = sum(step.total(what) for step in counts.steps)
        before, after = counts.before.total(what), counts.after.total(what)
        if before or steps or after:
            row(what, number(before), number(steps), number(steps / len(counts.steps)), number(after))


def print_growth(timed: dict[str, EditCounts]) -> None:
    """A row for each edit: what comes before its first step, the seconds of a step's parts, and its counts."""
    parts = ("render", "encode", "score", "backward", "optimiser")
    shown = (UNET, ENCODE, RAYS, GAUSSIANS)
    header("", "before: s", UNET, "a step: s", *parts, *shown)
    for name, counts in timed.items():
        before, steps = counts.before, counts.steps[1:]
        seconds = [statistics.median(step.seconds[part] for step in steps) for part in parts]
        every = statistics.median(sum(step.seconds.values()) for step in steps)
        totals = [mean(step.total(what) for step in steps) for what in shown]
        texts = [f"{value:.2f}" for value in (every, *seconds)]
        row(name, f"{sum(before.seconds.values()):.1f}", number(before.total(UNET)), *texts, *map(number, totals))


def header(*titles: str) -> None:
    row(*titles)
    row("---", *("---:" for _ in titles[1:]))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # nerfstudio's cameras
    tyro.cli(StepCostBenchmark).run()
