"""Settings of an edit that cannot be, told before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import torch

from cds_nerf.errors import UserError
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.live_settings import LOG, read_changes
from cds_nerf.nerf.several_devices import device_of
from cds_nerf.typed_options import as_flag, value_at

AT_LEAST = {
    "max_num_iterations": 1,
    "machine.num_devices": 1,
    "machine.seed": 0,
    "steps_per_save": 0,
    "steps_per_eval_batch": 0,
    "steps_per_eval_image": 0,
    "steps_per_eval_all_images": 0,
    "pipeline.guidance_resolution": 1,
    "pipeline.views_per_step": 1,
    "pipeline.draws_per_view": 1,
    "pipeline.rays_per_chunk": 2,  # nerfstudio's camera optimiser squeezes a chunk of one ray
    "pipeline.views_in_memory": 1,
    "pipeline.steps_per_strip": 1,
    "pipeline.orbit_frames": 0,
    "pipeline.w_keep": 0,
    "pipeline.held_rays": 0,
    "pipeline.w_anchor": 0,
    "pipeline.latent_step": 0,
    "pipeline.growing.threshold": 0,
    "pipeline.growing.share": 0,
    "pipeline.growing.every": 1,
    "pipeline.growing.until": 0,
}
"""The least value of each setting."""


def check_values(config: EditConfig) -> None:
    """Check what can be checked of a new edit without the source run and the diffusion model.

    Raises:
        UserError: if a device is not there, a number is too small, one setting excludes another, or one of the region
            does nothing.
    """
    check_recorded_values(config)
    region = config.pipeline.region
    region.check_acts(field.name for field in fields(region) if getattr(region, field.name) != field.default)


def check_recorded_values(config: EditConfig) -> None:
    """Check the same of a run that goes on; what did nothing when it began, and was not refused yet, may stay.

    Raises:
        UserError: if a device is not there, a number is too small, or one setting excludes another.
    """
    _check_devices(config)
    _check_numbers(config)
    config.pipeline.guidance.settle()
    config.pipeline.region.terms()
    _check_live_changes(config.pipeline.live_changes)
    _check_way_of_guidance(config)
    if config.start_paused and "viewer" not in config.vis:
        raise UserError("--start-paused True: without a viewer nothing lets the edit go on, add --vis viewer")
    for name in ("mixed_precision", "use_grad_scaler"):
        if getattr(config, name) and config.machine.device_type == "cpu":
            raise UserError(f"{as_flag(name)} is True; on a CPU nerfstudio does without, leave it out")


def _check_way_of_guidance(config: EditConfig) -> None:
    pipeline, typed = config.pipeline, config.typed or ()
    if pipeline.guided_through == "encoder" and (
        "pipeline.latent_step" in typed or pipeline.latent_step != type(pipeline).latent_step
    ):
        raise UserError(
            f"--pipeline.latent-step is {pipeline.latent_step}, which does nothing without "
            "--pipeline.guided-through decoder: add it, or leave this out"
        )
    if pipeline.guided_through == "decoder" and (
        "pipeline.encoder_checkpointing" in typed or pipeline.encoder_checkpointing
    ):
        raise UserError(
            f"--pipeline.encoder-checkpointing is {pipeline.encoder_checkpointing}, which does nothing with "
            "--pipeline.guided-through decoder, as no gradient goes through the encoder: leave it out"
        )
    if (
        "pipeline.encoder_checkpointing" in typed
        and pipeline.diffusion_model.cpu_offload
        and not pipeline.encoder_checkpointing
    ):
        raise UserError(
            "--pipeline.encoder-checkpointing is False; with --pipeline.diffusion-model.cpu-offload True each view is "
            "encoded twice, as the encoder is not there any more when the gradient comes: leave one of them out"
        )


def _check_live_changes(log: Path | None) -> None:
    if log is not None and not log.is_file():
        raise UserError(f"--pipeline.live-changes is {log}, which is no file: give the {LOG} of an edit's run folder")
    if log is not None:
        read_changes(log)


def _check_devices(config: EditConfig) -> None:
    machine = config.machine
    for flag, device in (
        ("--machine.device-type", config.machine.device_type),
        ("--pipeline.guidance-device", config.pipeline.diffusion_model.device),
    ):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch's answers to devices that it does not know or have
            raise UserError(f"{flag} is {device}, which torch does not find here: add {flag} cpu") from error
    number, kind = machine.num_devices, machine.device_type
    there = {"cuda": torch.cuda.device_count(), "cpu": number}.get(kind, 1)
    if number > there:
        raise UserError(
            f"--machine.num-devices is {number}, but here is {there} of {kind}: --pipeline.views-per-step {number} on "
            "one is the same edit, and slower"
        )
    guidance = config.pipeline.diffusion_model.device
    last = device_of(guidance, number - 1)
    if last is not None and last != guidance and int(last.rpartition(":")[2]) >= torch.cuda.device_count():
        raise UserError(
            f"--pipeline.guidance-device is {guidance}, the first of {number} with --machine.num-devices {number}, and "
            f"torch does not find {last} here: leave it out, and each device has its own diffusion model"
        )


def _check_numbers(config: EditConfig) -> None:
    for path, least in AT_LEAST.items():
        value = value_at(config, path)
        if value is not None and not value >= least:
            raise UserError(f"{as_flag(path)} is {value}; it must be at least {least}")
    for path in ("pipeline.growing.share", "pipeline.growing.until"):
        if value_at(config, path) > 1:
            raise UserError(f"{as_flag(path)} is {value_at(config, path)}; it must be at most 1")
    if config.machine.seed >= 2**32:
        raise UserError(f"--machine.seed is {config.machine.seed}; it must be less than 2^32")
    for group, parts in config.optimizers.items():
        optimizer, scheduler = parts["optimizer"], parts["scheduler"]
        values = {"optimizer.lr": optimizer.lr, "optimizer.max_norm": optimizer.max_norm}
        values |= {} if scheduler is None else {"scheduler.lr_final": scheduler.lr_final}
        for name, value in values.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{as_flag(f'optimizers.{group}.{name}')} is {value}; it must be greater than 0")
