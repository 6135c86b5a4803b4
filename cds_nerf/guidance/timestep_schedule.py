"""Between which timesteps a step draws its own, as the edit goes on."""

from __future__ import annotations

from cds_nerf.errors import UserError
from cds_nerf.guidance.config import CDSGuidanceConfig


def timestep_bounds(config: CDSGuidanceConfig, step: int | None, steps: int | None) -> tuple[float, float]:
    """The least and the most noise that a step may draw, as fractions of the training timesteps.

    uniform: from `min_timestep` to `max_timestep` at every step.

    decreasing: a window of `timestep_spread` times that range, at its top in the first step and at its bottom in the
    last: what is large is changed first, as a diffusion model does it. With a spread of 0 it is the line of
    DreamCatalyst (arXiv 2407.11394, where it goes from .9 to .2), with 1 it is uniform.

    Args:
        config: the schedule and its bounds.
        step: of the edit, from 0.
        steps: how many the edit has in all, those before an interruption included.

    Raises:
        UserError: if the schedule depends on the step and is not told it.
    """
    least, most = config.min_timestep, config.max_timestep
    if config.timestep_schedule == "uniform":
        return least, most
    if step is None or steps is None:
        raise UserError(
            f"timestep_schedule is {config.timestep_schedule!r}, which depends on how far the edit has come: "
            "call the guidance with step and steps"
        )
    left = 1 - min(step / max(steps - 1, 1), 1)
    window = config.timestep_spread * (most - least)
    low = least + left * (most - least - window)
    return low, low + window
