"""The settings of a new edit: its source run's model, data and optimizer groups, with what was typed over them."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from nerfstudio.utils.rich_utils import CONSOLE

from cds_nerf.diffusion.model_settings import is_like
from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError
from cds_nerf.nerf.configuration import DEFAULT_ITERATIONS, EditConfig
from cds_nerf.nerf.datamanager import settings_like
from cds_nerf.nerf.pipeline_settings import PROMPT_FLAGS
from cds_nerf.nerf.settings_check import check_values
from cds_nerf.nerf.source_check import check_renders
from cds_nerf.nerf.source_run import SourceRun
from cds_nerf.nerf.typed_settings import PARSER, as_typed, is_within
from cds_nerf.typed_options import as_flag, set_value_at, value_at

OF_MODEL = (
    "max_num_iterations",
    "optimizers",
    "pipeline.guidance",
    "pipeline.guidance_resolution",
    "pipeline.w_keep",
    "pipeline.views_per_step",
    "pipeline.draws_per_view",
)
"""What a diffusion model can say of an edit."""

OF_GUIDANCE = "pipeline.guidance."
OF_SPLATS = ("pipeline.growing", "pipeline.w_anchor")
"""What ray fields have no use for."""


def settle_new_edit(config: EditConfig) -> None:
    """Fill in, in place, what the user left to the source run.

    Args:
        config: after `settle_typed`.

    Raises:
        UserError: if a value is missing, contradicts another, or names something that is not there.
    """
    check_values(config)
    pipeline = config.pipeline
    check_prompts(pipeline.source_prompt, pipeline.target_prompt, PROMPT_FLAGS)
    source = _find_source_run(config)
    _take_source_run(config, source)
    if (config.get_base_dir() / "config.yml").exists():
        raise UserError(
            f"{config.get_base_dir()} holds a run already: choose another --timestamp, "
            f"or continue it with --pipeline.resume-from {config.get_base_dir()}"
        )
    groups = source.parameter_groups()
    _check_groups(config, groups)
    check_renders(config, source)
    pipeline.diffusion_model = pipeline.diffusion_model.anchored()
    pipeline.diffusion_model.check(
        pipeline.source_prompt, pipeline.target_prompt, PROMPT_FLAGS, default_device=config.machine.device_type
    )
    _take_model_settings(config)
    pipeline.guidance.check_told(_of_guidance(config.typed or ()))
    config.max_num_iterations = config.max_num_iterations or DEFAULT_ITERATIONS
    config.optimizers = _optimizers(config, groups)


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
    for path in ("pipeline.rays_per_chunk", "pipeline.held_rays"):
        if source.trains_on_images and path in typed:
            raise UserError(f"{as_flag(path)} does nothing in an edit of splats, which are drawn a view at a time")
    _check_of_splats(config, source)
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

    pipeline.source_checkpoint = source.checkpoint
    config.load_dir = config.load_checkpoint = config.load_step = None


def _check_of_splats(config: EditConfig, source: SourceRun) -> None:
    """Refuse what was typed for splats and would do nothing."""
    pipeline, kind = config.pipeline, config.pipeline.growing.kind
    for path in config.typed or ():
        flag = as_flag(path)
        if not source.trains_on_images and any(is_within(path, own) for own in OF_SPLATS):
            raise UserError(f"{flag} is for splats, and {source.directory} has none: leave it out")
        if path == "pipeline.w_anchor" and pipeline.w_anchor and not pipeline.w_keep and pipeline.region.kind == "auto":
            raise UserError(
                f"{flag} holds what is outside the region, and --pipeline.w-keep 0 lets the edit act anywhere"
            )
        if path == "pipeline.growing.threshold" and kind != "gsplat":
            raise UserError(f"{flag} is for --pipeline.growing.kind gsplat, and that is {kind}")
        if path == "pipeline.growing.share" and kind != "greatest":
            raise UserError(f"{flag} is for --pipeline.growing.kind greatest, and that is {kind}")
        if path in ("pipeline.growing.every", "pipeline.growing.until") and kind == "off":
            raise UserError(f"{flag} says when Gaussians are added, and --pipeline.growing.kind is off: none are")


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


def _check_groups(config: EditConfig, groups: set[str]) -> None:
    """Refuse what was typed of parameter groups that the source does not have."""
    used = {_like(group, config) for group in groups}
    for path in config.typed or ():
        if is_within(path, "optimizers") and not any(is_within(path, f"optimizers.{group}") for group in used):
            raise UserError(f"{as_flag(path)}: the source has no such group, but {', '.join(sorted(groups))}")
    if unknown := sorted(set(config.gradient_accumulation_steps) - groups):
        raise UserError(
            f"--gradient-accumulation-steps has {unknown[0]}; the source's groups are {', '.join(sorted(groups))}"
        )


def _take_model_settings(config: EditConfig) -> None:
    """The settings that the diffusion model carries, where nothing was typed."""
    model = config.pipeline.diffusion_model.settings(config.machine.device_type)
    guidance, taken = config.pipeline.guidance, {}
    typed = config.typed or ()
    told = {*typed, *(OF_GUIDANCE + name for name in guidance.settled(_of_guidance(typed)))}
    for path, value in model.for_scene(guidance.score).items():
        where = f"the model's settings {model.file} have {path.replace('_', '-')}"
        if not any(is_within(path, own) for own in OF_MODEL):
            raise UserError(f"{where}: of a scene a model can set {', '.join(OF_MODEL).replace('_', '-')} alone")
        try:
            default = value_at(config, path)
        except LookupError as error:
            raise UserError(f"{where}, which is no setting of an edit") from error
        value = tuple(value) if isinstance(value, list) else value
        if default is not None and not is_like(value, default):
            raise UserError(f"{where} {value!r}: it must be like {default!r}")
        if not any(is_within(path, one) for one in told):
            set_value_at(config, path, value)
            taken[path] = value
    if taken:
        try:
            check_values(config)
        except UserError as error:
            raise UserError(f"the model's settings {model.file}: {error}") from error
        CONSOLE.print(
            "settings of the model: " + ", ".join(f"{path.replace('_', '-')} {value}" for path, value in taken.items())
        )


def _of_guidance(typed: Iterable[str]) -> list[str]:
    return [path.removeprefix(OF_GUIDANCE) for path in typed if path.startswith(OF_GUIDANCE)]


def _like(group: str, config: EditConfig) -> str:
    """The group of the configuration whose optimizer a group of the source gets."""
    return group if group in config.optimizers else "fields"


def _optimizers(config: EditConfig, groups: set[str]) -> dict[str, Any]:
    """An optimizer for each of the source's groups: the typed one, or as the fields' is."""
    optimizers = {}
    for group in sorted(groups):
        like = _like(group, config)
        optimizers[group] = deepcopy(config.optimizers[like])
        scheduler = optimizers[group]["scheduler"]
        if f"optimizers.{like}.scheduler.max_steps" not in (config.typed or ()):
            scheduler.max_steps = config.max_num_iterations
        if scheduler.warmup_steps >= scheduler.max_steps:
            raise UserError(
                f"{as_flag(f'optimizers.{like}.scheduler.warmup_steps')} is {scheduler.warmup_steps}; "
                f"it must be less than the {scheduler.max_steps} steps in which the rate decays"
            )
    return optimizers
