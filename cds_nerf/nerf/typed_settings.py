"""What was typed of an edit's settings: short forms written out, nothing said twice, and nothing said in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfstudio.configs.dataparser_configs import all_dataparsers

from cds_nerf.errors import UserError
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.typed_options import as_flag, differing_options, set_value_at, value_at

PARSER = "pipeline.datamanager.dataparser"
"""The field of the data parser, which a word such as blender-data chooses; the parser's options follow the word."""
SUBCOMMANDS = dict.fromkeys(all_dataparsers, PARSER)
"""What each word of ns-train's command line chooses that is no option, behind the method."""
SHORT_FORMS = {
    "prompt": "pipeline.target_prompt",
    "data": "pipeline.datamanager.data",
    f"{PARSER}.data": "pipeline.datamanager.data",
    "pipeline.diffusion": "pipeline.diffusion_model.model",
    "pipeline.guidance_device": "pipeline.diffusion_model.device",
    "pipeline.guidance_dtype": "pipeline.diffusion_model.dtype",
}
"""Options that mean the same as others, in which they are kept."""
USUAL_FORMS = {full: short for short, full in SHORT_FORMS.items() if not short.startswith(PARSER)}

WHOLE_VIEWS = "does nothing in an edit, which renders whole views and reads no photograph"
NO_LOSS = "does nothing in an edit: it weighs a loss against photographs"
PROPOSALS = "does nothing in an edit, which moves the proposal networks in every step, with all annealing over"
POSES = "does nothing in an edit, which holds the cameras' poses"
IDLE = {
    "pipeline.model.prompt": "does nothing in an edit: --prompt says what the scene should become",
    "pipeline.datamanager.train_num_rays_per_batch": f"{WHOLE_VIEWS}; --pipeline.rays-per-chunk saves memory",
    "pipeline.datamanager.train_num_images_to_sample_from": WHOLE_VIEWS,
    "pipeline.datamanager.train_num_times_to_repeat_images": WHOLE_VIEWS,
    "pipeline.datamanager.eval_image_indices": WHOLE_VIEWS,
    "pipeline.diffusion_model.vae_slicing": "does nothing in an edit, which encodes one view at a time",
    "pipeline.model.loss_coefficients": NO_LOSS,
    "pipeline.model.orientation_loss_mult": NO_LOSS,
    "pipeline.model.pred_normal_loss_mult": NO_LOSS,
    "pipeline.model.proposal_update_every": PROPOSALS,
    "pipeline.model.proposal_warmup": PROPOSALS,
    "pipeline.model.use_proposal_weight_anneal": PROPOSALS,
    "pipeline.model.proposal_weights_anneal_slope": PROPOSALS,
    "pipeline.model.proposal_weights_anneal_max_num_iters": PROPOSALS,
    "pipeline.model.camera_optimizer.trans_l2_penalty": POSES,
    "pipeline.model.camera_optimizer.rot_l2_penalty": POSES,
}
"""Options of nerfstudio's that an edit has no use for, each with all below it, and why."""
FIXED = {
    "load_scheduler": (True, "an edit that is resumed goes on with its learning rates"),
    "method_name": ("cds", "nerfstudio would not find the run; --experiment-name and --timestamp name it"),
    "machine.num_machines": (1, "cds edits on one machine, on --machine.num-devices of it"),
    "machine.machine_rank": (0, "cds edits on one machine"),
    "machine.dist_url": ("auto", "cds edits on one machine"),
}
"""Options of nerfstudio's that have one value in an edit, and why."""
OF_PHOTOGRAPHS = (
    "pipeline.datamanager.eval_num_rays_per_batch",
    "pipeline.datamanager.eval_num_images_to_sample_from",
    "pipeline.datamanager.eval_num_times_to_repeat_images",
    "pipeline.datamanager.pixel_sampler",
    "pipeline.datamanager.patch_size",
    "pipeline.datamanager.images_on_gpu",
    "pipeline.datamanager.masks_on_gpu",
)
"""Options that act on evaluation photographs alone."""


def settle_typed(config: EditConfig) -> None:
    """Say in `config.typed` what was typed, short forms written out, and refuse what was typed in vain.

    Where `config.typed` says nothing, what differs from the method's defaults counts as typed. A second call changes
    nothing.

    Raises:
        UserError: if an option does nothing in an edit, or contradicts one that means the same.
    """
    if config.load_config is not None:
        run = config.load_config.parent
        raise UserError(
            f"--load-config {config.load_config} makes nerfstudio train that run anew, over its checkpoint: edit its "
            f"field with --load-dir {run}, or, if it is an edit, let it go on with --pipeline.resume-from {run}"
        )
    if config.typed is None:
        config.typed = sorted(differing_options(config, type(config)()))
    _write_out_short_forms(config)
    _refuse_idle(config)


def _write_out_short_forms(config: EditConfig) -> None:
    typed = set(config.typed or ())
    for short, full in SHORT_FORMS.items():
        if short not in typed:
            continue
        value, other = value_at(config, short), value_at(config, full)
        if full in typed and value != other:
            raise UserError(
                f"{as_typed(short)} is {shown(value)} and {as_flag(full)} is {shown(other)}: "
                "they mean the same, give one"
            )
        write_out(config, short)
        typed = typed - {short} | {full}
    config.typed = sorted(typed)


def write_out(config: EditConfig, short: str) -> None:
    """Move the value of a short form to where it is kept, if it has one."""
    value = value_at(config, short)
    if value is not None:
        set_value_at(config, SHORT_FORMS[short], value)
        if not short.startswith(PARSER):
            set_value_at(config, short, None)


def _refuse_idle(config: EditConfig) -> None:
    evaluates = config.steps_per_eval_batch or config.steps_per_eval_image or config.steps_per_eval_all_images
    idle = IDLE | (
        {}
        if evaluates
        else dict.fromkeys(OF_PHOTOGRAPHS, f"does nothing without --steps-per-eval-image: {WHOLE_VIEWS}")
    )
    for path in config.typed or ():
        for option, why in idle.items():
            if is_within(path, option):
                raise UserError(f"{as_typed(path)} {why}")
    for path, (value, why) in FIXED.items():
        if (given := value_at(config, path)) != value:
            raise UserError(f"{as_typed(path)} is {shown(given)}; {why}")


def is_within(path: str, other: str) -> bool:
    """Whether a field is another one or below it."""
    return path == other or path.startswith(f"{other}.")


def as_typed(path: str) -> str:
    """A field's option, as ns-train takes it, in its usual form."""
    if path.startswith(f"{PARSER}."):
        return f"{as_flag(path.removeprefix(f'{PARSER}.'))} of the data parser"
    return as_flag(USUAL_FORMS.get(path, path))


def shown(value: Any) -> str:
    """A value as messages have it."""
    return str(value) if isinstance(value, Path) else repr(value)
