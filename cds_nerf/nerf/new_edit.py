"""The settings of a new edit: its source run's model, data and optimizer groups, with what was typed over them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError
from cds_nerf.nerf.configuration import DEFAULT_ITERATIONS, EditConfig
from cds_nerf.nerf.datamanager import settings_like
from cds_nerf.nerf.pipeline import PROMPT_FLAGS
from cds_nerf.nerf.settings_check import check_values
from cds_nerf.nerf.source_check import check_renders
from cds_nerf.nerf.source_run import SourceRun
from cds_nerf.nerf.typed_settings import PARSER, as_typed, is_within
from cds_nerf.typed_options import as_flag, set_value_at, value_at


def settle_new_edit(config: EditConfig) -> None:
    """Fill in, in place, what the user left to the source run.

    Args:
        config: after `settle_typed`.

    Raises:
        UserError: if a value is missing, contradicts another, or names something that is not there.
    """
    check_values(config)
    check_prompts(config.pipeline.source_prompt, config.pipeline.target_prompt, PROMPT_FLAGS)
    source = _find_source_run(config)
    _take_source_run(config, source)
    if (config.get_base_dir() / "config.yml").exists():
        raise UserError(
            f"{config.get_base_dir()} holds a run already: choose another --timestamp, "
            f"or continue it with --pipeline.resume-from {config.get_base_dir()}"
        )
    check_renders(config, source)


def _find_source_run(config: EditConfig) -> SourceRun:
    if config.load_dir is not None and config.load_checkpoint is not None:
        raise UserError(
            f"--load-dir is {config.load_dir} and --load-checkpoint is {config.load_checkpoint}: each names the field "
            "to edit, give one"
        )
    location = config.load_checkpoint or config.load_dir
    if location is None:
        raise UserError(
            "--load-dir is missing: cds edits a trained field, give the nerfstudio_models folder of its run "
            "(outputs/SCENE/nerfacto/TIME/nerfstudio_models); `ns-train cds-source` makes one"
        )
    return SourceRun.find(location, config.load_step)


def _take_source_run(config: EditConfig, source: SourceRun) -> None:
    source.check_kind()
    pipeline, typed = config.pipeline, set(config.typed or ())
    source_pipeline: Any = source.config.pipeline
    if source.trains_on_images and "pipeline.rays_per_chunk" in typed:
        raise UserError("--pipeline.rays-per-chunk does nothing in an edit of splats, which are drawn a view at a time")
    model: Any = source.model()
    pipeline.model = _with_typed_values(model, config, "pipeline.model")
    if (typed_implementation := getattr(pipeline.model, "implementation", None)) != getattr(
        model, "implementation", None
    ):
        raise UserError(
            f"--pipeline.model.implementation is {typed_implementation}, but {source.checkpoint} was made with "
            f"{model.implementation}: leave it out"
        )

    parser = source_pipeline.datamanager.dataparser
    if PARSER not in typed or type(parser) is type(pipeline.datamanager.dataparser):
        pipeline.datamanager.dataparser = _with_typed_values(parser, config, PARSER)
    if "pipeline.datamanager.camera_res_scale_factor" not in typed:
        pipeline.datamanager.camera_res_scale_factor = source_pipeline.datamanager.camera_res_scale_factor
    pipeline.datamanager.dataset = source.dataset()
    data = pipeline.datamanager.data or source.data()
    if not data.exists():
        raise UserError(f"the data {data} of the source run is not there: give --data")
    config.data = pipeline.datamanager.data = data
    pipeline.datamanager = settings_like(pipeline.datamanager, source_pipeline.datamanager)  # type: ignore[assignment]

    config.max_num_iterations = config.max_num_iterations or DEFAULT_ITERATIONS
    config.optimizers = _optimizers(config, source.parameter_groups())  # the poses stay as they are
    pipeline.diffusion_model = pipeline.diffusion_model.anchored()
    pipeline.source_checkpoint = source.checkpoint
    config.load_dir = config.load_checkpoint = config.load_step = None


def _with_typed_values(base: Any, config: EditConfig, block: str) -> Any:
    """A copy of a block of the source's settings with what was typed of it."""
    settled = deepcopy(base)
    for path in config.typed or ():
        if path != block and is_within(path, block):
            try:
                set_value_at(settled, path.removeprefix(f"{block}."), value_at(config, path))
            except LookupError as error:
                raise UserError(f"{as_typed(path)} is not a setting of the source's {type(base).__name__}") from error
    return settled


def _optimizers(config: EditConfig, groups: set[str]) -> dict[str, Any]:
    """An optimizer for each of the source's groups: the typed one, or as the fields' is."""
    typed = [path for path in config.typed or () if is_within(path, "optimizers")]
    optimizers = {}
    for group in sorted(groups):
        like = group if group in config.optimizers else "fields"
        optimizers[group] = deepcopy(config.optimizers[like])
        scheduler = optimizers[group]["scheduler"]
        if f"optimizers.{like}.scheduler.max_steps" not in typed:
            scheduler.max_steps = config.max_num_iterations
        if scheduler.warmup_steps >= scheduler.max_steps:
            raise UserError(
                f"{as_flag(f'optimizers.{like}.scheduler.warmup_steps')} is {scheduler.warmup_steps}; "
                f"it must be less than the {scheduler.max_steps} steps in which the rate decays"
            )
        typed = [path for path in typed if not is_within(path, f"optimizers.{like}")]
    if typed:
        raise UserError(f"{as_flag(typed[0])}: the source has no such group, but {', '.join(sorted(groups))}")
    if unknown := sorted(set(config.gradient_accumulation_steps) - groups):
        raise UserError(
            f"--gradient-accumulation-steps has {unknown[0]}; the source's groups are {', '.join(sorted(groups))}"
        )
    return optimizers
