"""An edit that is killed at any moment goes on to the field of one that was not, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import dying_command
import pytest
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, load_checkpoint
from test_edit import assert_equal_states
from test_survival import pictures

KILLS = 20

pytestmark = pytest.mark.slow


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content of all files, and when they were written."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_edit_killed_at_any_moment_goes_on_to_the_same_field(source_run, diffusion_folder, capture, tmp_path):
    words = [
        *("ns-train", "cds", "--data", capture, "--load-dir", source_run / "nerfstudio_models", "--vis", "tensorboard"),
        *("--pipeline.source-prompt", SOURCE_PROMPT, "--prompt", TARGET_PROMPT, "--max-num-iterations", 6),
        *("--pipeline.diffusion", diffusion_folder, "--pipeline.guidance-resolution", 16),
        *("--pipeline.orbit-frames", 2, "--pipeline.steps-per-strip", 3, "--steps-per-save", 2),
        *("--pipeline.guidance.relative-w-cut", 0.5, "--machine.device-type", "cpu"),
    ]
    runs = tmp_path / "outputs" / capture.name / "cds"
    changes = dying_command.run([*words, "--timestamp", "whole"], tmp_path, tmp_path / "log")
    (tmp_path / "outputs" / "notes.txt").write_text("mine")
    moments = sorted({round(index * (len(changes) - 9) / (KILLS - 1)) for index in range(KILLS)})
    saves = [number for number, change in enumerate(changes) if change.startswith("torch.save")]
    print(f"{len(changes)} changes to the disk, killed at {len({*moments, *saves})} of them:")
    for moment in sorted({*moments, *saves}):
        others, run = files(tmp_path / "outputs"), runs / f"killed-{moment}"
        started = [*words, "--timestamp", run.name]
        made = dying_command.run(started, tmp_path, tmp_path / "log", at=moment)
        print(f"  {moment}: {made[-1]}")
        begun = (run / "config.yml").exists()
        again = ["ns-train", "cds", "--pipeline.resume-from", run] if begun else started
        dying_command.run(again, tmp_path, tmp_path / "log")
        assert_equal_states(load_checkpoint(run), load_checkpoint(runs / "whole"))
        assert pictures(run) == pictures(runs / "whole")
        assert (run / "before_after.mp4").stat().st_size > 0
        assert not list(run.rglob(".partial-*"))
        now = files(tmp_path / "outputs")
        assert {name: now[name] for name in now if run not in Path(name).parents} == others
