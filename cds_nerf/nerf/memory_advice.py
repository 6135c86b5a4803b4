"""What to do where memory runs out."""

from __future__ import annotations

from pathlib import Path

import torch

from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.datamanager import CDSDataManagerConfig

LEAST_RAYS_PER_CHUNK = 512
"""Fewer save nothing that counts."""


def where_memory_ran_out(config: EditConfig, run: Path, steps: int) -> str:
    """How to go on, or to start again, with less; what costs least of the edit's quality is named first.

    Args:
        config: of the edit.
        run: its folder.
        steps: that are in its last checkpoint; 0 without one.
    """
    free, fixed = _settings_that_take_less(config)
    short = f"{config.machine.device_type} has too little memory"
    if steps and free:
        return (
            f"{short}: the edit goes on at step {steps} with: ns-train cds --pipeline.resume-from {run} "
            f"{' '.join(free)}; if that is not enough, a new edit takes less with {' or '.join(fixed)}"
        )
    return f"{short}: start again with one or more of these, the first costs least: {', '.join(free + fixed)}"


def _settings_that_take_less(config: EditConfig) -> tuple[list[str], list[str]]:
    """Words of a command line: what may change while an edit is under way, which is slower but as good; and others."""
    pipeline, model = config.pipeline, config.pipeline.diffusion_model
    device = model.device or config.machine.device_type
    dtype = model.dtype or ("float32" if device == "cpu" else "float16")
    can = {
        "--pipeline.encoder-checkpointing True": (pipeline.guided_through == "encoder" and not pipeline.encodes_twice),
        "--pipeline.diffusion-model.gradient-checkpointing True": not model.gradient_checkpointing,
        f"--pipeline.rays-per-chunk {max(pipeline.rays_per_chunk // 4, LEAST_RAYS_PER_CHUNK)}": (
            pipeline.rays_per_chunk > LEAST_RAYS_PER_CHUNK and isinstance(pipeline.datamanager, CDSDataManagerConfig)
        ),
        "--pipeline.guidance-device cuda:1": model.device is None and torch.cuda.device_count() > 1,
        "--pipeline.diffusion-model.cpu-offload True": not model.cpu_offload and device != "cpu",
        "--pipeline.guidance-dtype bfloat16": dtype == "float32",
        "--pipeline.diffusion-model.vae-tiling True": not model.vae_tiling,
    }
    can_anew = {
        "--pipeline.draws-per-view 1": pipeline.draws_per_view > 1,
        "a smaller --pipeline.guidance-resolution": True,
        "--pipeline.guidance.w-cut 0": bool(pipeline.guidance.w_cut),
    }
    return [words for words, lowers in can.items() if lowers], [words for words, lowers in can_anew.items() if lowers]
