"""The pipeline of an edit: render a view, encode it, and let the guidance say where it should go."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from cds_nerf.errors import UserError
from cds_nerf.fields.orbit import orbit_cameras, viewed_distance
from cds_nerf.fields.ray_rendering import rescale_camera
from cds_nerf.finite import are_finite
from cds_nerf.guidance import CDSGuidance
from cds_nerf.guidance.relevance import nothing, relevance_map
from cds_nerf.nerf import compatibility
from cds_nerf.nerf.datamanager import CDSDataManager, CDSImageDataManager
from cds_nerf.nerf.decoding import decoded_loss
from cds_nerf.nerf.encoding import encode_within
from cds_nerf.nerf.field_pipeline import FieldPipeline
from cds_nerf.nerf.gradient_picture import PulledView
from cds_nerf.nerf.held_rays import VIEWS, held_errors
from cds_nerf.nerf.live_settings import (
    LIVE_SETTINGS,
    LOG,
    LiveSettings,
    check_live_settings,
    read_changes,
    write_changes,
)
from cds_nerf.nerf.pipeline_settings import PROMPT_FLAGS, CDSPipelineSettings
from cds_nerf.nerf.region import Region, masks_of_capture
from cds_nerf.nerf.several_devices import Devices, device_of
from cds_nerf.nerf.step_checks import StepChecks
from cds_nerf.nerf.view_store import ViewStore
from cds_nerf.nerf.viewer_panel import LivePanel
from cds_nerf.progress import progress_bar
from cds_nerf.seeding import seed_for
from cds_nerf.transfers import send
from cds_nerf.typed_options import set_value_at, value_at

NEAREST_TO_EDIT = 0.15
"""What is edited is no nearer to a camera than this share of its distance from what the cameras look at."""


@dataclass
class CDSPipelineConfig(CDSPipelineSettings):
    """What is edited, into what, and how."""

    _target: type = field(default_factory=lambda: CDSPipeline)


class CDSPipeline(FieldPipeline):
    """Renders training views of a field, and hands their latents to the guidance.

    The diffusion model is no part of the pipeline's state, and is loaded for an edit only.
    """

    config: CDSPipelineConfig
    datamanager: CDSDataManager | CDSImageDataManager

    def __init__(
        self, config: CDSPipelineConfig, device: str, grad_scaler: GradScaler | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config, device, grad_scaler=grad_scaler, **kwargs)
        self.grad_scaler = grad_scaler
        self.devices = Devices()
        self.checks = StepChecks()
        self.pulled_view: PulledView | None = None  # the last one
        if self.test_mode == "val":  # it is to be trained, and not only to be seen
            self.live_edit = LivePanel({path: value_at(self.config, path) for path in LIVE_SETTINGS})

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """One step of the edit: the mean losses of its views. All that is drawn follows from the seed and the step.

        The losses have the graph of the last view alone; the gradients of the others, and of the rays that are held in
        views drawn before, are in the parameters already, so that no two graphs are alive at once. Each of several
        devices takes views of its own; the sum of the gradients of all of them is that of the mean.

        That the losses and the guidance's gradients are finite is left to `checks`, which are read when the step is
        done: each look at a value would wait for the device.

        Raises:
            FloatingPointError: if another device leaves out the step, or this one must.
        """
        self.checks.clear()
        self._take_live_settings(step)
        self.field.hold(lambda: self.unedited, lambda: None if self.region is None else self.region.within(step))
        views = self.drawn_per_step
        draws = range(step * views, (step + 1) * views)[self.devices.rank :: self.devices.number]
        means = self._hold_other_views(step, step * views)
        for draw in draws:
            losses, metrics = self._losses_of_view(step, draw)
            losses = {name: loss / views for name, loss in losses.items()}
            if draw != draws[-1]:
                self._backward(losses)
                losses = {name: loss.detach() for name, loss in losses.items()}
            means = {name: loss + means.get(name, 0) for name, loss in losses.items()}
        if self.devices.number > 1:
            self.checks.read()
        return {}, *self.devices.share(means, metrics)

    @property
    def drawn_per_step(self) -> int:
        """The views of a step, those of other devices included."""
        return self.config.views_per_step * self.devices.number

    def _backward(self, losses: dict[str, Tensor]) -> None:
        """Add a view's gradients to the parameters', scaled and in full precision as the trainer's own are."""
        with torch.autocast(self.device.type, enabled=False):
            loss = torch.stack(list(losses.values())).sum()
            scaled: Any = loss if self.grad_scaler is None else self.grad_scaler.scale(loss)
            scaled.backward()

    def _losses_of_view(self, step: int, draw: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses and metrics of one view of a step; `draw` counts the views since the edit began."""
        config, guidance = self.config, self.guidance
        index = self.datamanager.next_view(draw, self.seed)
        image, losses = self.render_view(index, seed_for(self.seed, "rendering", draw))
        relevance = None if self.region is None else send(self.region.of_view(index, step), image.device)

        latents = self._encode(relevance, image)
        drawn = latents.expand(config.draws_per_view, -1, -1, -1)
        out = guidance(
            self.source.latents(index, tuple(latents.shape[1:])).expand_as(drawn),
            drawn,
            self.source_text,
            self.target_text,
            generator=torch.Generator().manual_seed(seed_for(self.seed, "guidance", draw)),
            step=step,
            steps=self.steps,
            check=False,
        )
        timestep = out.timestep
        self.checks.add(out.is_finite, lambda: guidance.why_not_finite(timestep))
        self.pulled_view = PulledView(image.detach(), out.gradient)
        terms = {name: loss / config.draws_per_view for name, loss in out.weighted_terms.items()}
        if config.guided_through == "decoder":
            (gradient,) = torch.autograd.grad(out.loss / config.draws_per_view, latents)
            terms = {name: loss.detach() for name, loss in terms.items()}
            terms["decoded_loss"] = decoded_loss(
                relevance, image, latents.detach(), gradient, guidance.diffusion.decode, config.latent_step
            )
        losses |= terms
        if relevance is not None:
            losses |= self._losses_outside(index, image, relevance, latents[0, 0].numel())

        metrics = {
            "view": torch.tensor(index),
            "timestep": out.timestep.float().mean(),
            "gradient": out.gradient.square().mean().sqrt(),
        }
        losses = {name: loss.to(self.device) for name, loss in losses.items()}
        values = {name: loss.detach() for name, loss in losses.items()}
        self.checks.add(are_finite(values.values()), lambda: _why_not_finite(values))
        return losses, metrics

    def _encode(
        self, relevance: Float[Tensor, "1 height width"] | None, image: Float[Tensor, "3 height width"]
    ) -> Float[Tensor, "1 channels h w"]:
        """A view's latents: with the view's graph, or as a leaf where the decoder says what the view should become."""
        config, encode = self.config, self.guidance.diffusion.encode
        if config.guided_through == "encoder":
            return encode_within(relevance, image, encode, config.encodes_twice)
        return encode(image.detach()[None]).requires_grad_()

    def _hold_other_views(self, step: int, drawn: int) -> dict[str, Tensor]:
        """Add the gradients of rays outside the region, of views drawn before, and give the loss that they have."""
        config, region = self.config, self.region
        if region is None or not config.w_keep or not config.held_rays:
            return {}
        weight = config.w_keep * 2000 * self.guidance.diffusion.image_multiple**2  # 2000 a latent, as in the view
        loss = torch.zeros((), device=self.device)
        for error in held_errors(
            self.field,
            self._views_there,
            region.order[: max(drawn, len(region.prepare(step)))],
            lambda index: region.of_view(index, step),
            self.source.image,
            config.held_rays,
            seed_for(self.seed, "held rays", step),
            range(VIEWS)[self.devices.rank :: self.devices.number],
        ):
            self._backward({"keep_loss": weight * error})
            loss += weight * error.detach()
        self.checks.add(are_finite([loss]), lambda: _why_not_finite({"keep_loss": loss}))
        return {"keep_loss": loss}

    def _losses_outside(
        self,
        index: int,
        image: Float[Tensor, "3 height width"],
        relevance: Float[Tensor, "1 height width"],
        latents: int,
    ) -> dict[str, Float[Tensor, ""]]:
        """What holds the field to the source outside of the region: a view's looks, and splats themselves."""
        config, losses = self.config, {}
        if config.w_keep:
            difference = image - send(self.source.image(index, tuple(image.shape[1:])), image.device)
            # 2000 a latent, as in the Delta Denoising Score, so that both grow alike with the view.
            losses["keep_loss"] = config.w_keep * 2000 / latents * ((1 - relevance) * difference.square()).sum()
        if config.w_anchor:
            loss = self.field.anchor_loss(lambda: self.unedited, self.views[index], relevance)
            if loss is not None:
                losses["anchor_loss"] = config.w_anchor * loss
        return losses

    def render_view(
        self, index: int, seed: int
    ) -> tuple[Float[Tensor, "3 height width"], dict[str, Float[Tensor, ""]]]:
        """A training view at the guidance's resolution, and the field's own regularisers."""
        return self.field.render_view(self._views_there[index], index, seed)

    @torch.no_grad()
    def render_training_view(self, index: int) -> Float[Tensor, "3 height width"]:
        """A training view as pictures show it: with the same sampling jitter at any step."""
        return self.render_view(index, seed_for(self.seed, "training view", index))[0].clamp(0, 1)

    def render_frame(self, index: int) -> Float[Tensor, "3 height width"]:
        """A frame of the orbit, as ns-render shows it."""
        return self.field.render_frame(self.orbit[index])

    def begin_edit(self, directory: Path, seed: int, steps: int, start: int = 0) -> None:
        """Load the diffusion model and bring the source's views, rendered before the first step, into the run folder.

        Args:
            directory: the run folder.
            seed: of all that is random in the edit.
            steps: how many the edit has, those before an interruption included.
            start: the step that comes first.

        Raises:
            UserError: if the diffusion model cannot be had, or the guidance's settings do not fit it.
        """
        config = self.config
        self.seed, self.steps, self.next_step = seed, steps, start
        log = directory / LOG
        if config.live_changes is not None and not log.exists() and self.devices.is_first:
            write_changes(read_changes(config.live_changes), log)
        self.live = LiveSettings(config, log)
        self._set(self.devices.from_first(self.live.at(start)))
        options = config.diffusion_model
        diffusion = replace(options, device=device_of(options.device, self.devices.rank)).load(self.device)
        self.guidance = CDSGuidance(config.guidance, diffusion)
        self.guidance.strengths.of_all = self.devices.exchange
        self.guidance.strengths.rank = self.devices.rank
        diffusion.check_prompts(config.source_prompt, config.target_prompt, PROMPT_FLAGS)
        self._embed_prompts()

        resolution, multiple = config.guidance_resolution or diffusion.native_size, diffusion.image_multiple
        if resolution < multiple or resolution % multiple:
            raise UserError(
                f"--pipeline.guidance-resolution is {resolution}; {options.model} takes multiples of {multiple}, "
                f"such as {max(round(resolution / multiple), 1) * multiple}"
            )
        cameras = self.field.cameras(self.datamanager.train_dataset.cameras)
        self.views = [rescale_camera(cameras[i : i + 1], resolution, multiple) for i in range(len(cameras))]
        self._views_there = [view.to(self.device) for view in self.views]
        self.orbit = orbit_cameras(cameras, self.views[0], config.orbit_frames)

        compatibility.update_proposals_in_every_call(self.model)
        self._prepare_source(directory / "source")
        self.field.begin_edit()

    def _embed_prompts(self) -> None:
        config, diffusion = self.config, self.guidance.diffusion
        encoders = [part for part in (diffusion.text_encoder, diffusion.text_encoder_2) if part is not None]
        for encoder in encoders:
            encoder.to(diffusion.device)
        self.source_text = diffusion.encode_prompt(config.source_prompt)
        self.target_text = diffusion.encode_prompt(config.target_prompt)
        self.region_text = diffusion.encode_prompt(config.region.text) if config.region.text.strip() else None
        for encoder in encoders:
            encoder.cpu()  # until there is another prompt; the device's memory is for the UNet

    def change_live(self, values: Mapping[str, Any]) -> list[str]:
        """Change live settings from the next step on.

        Args:
            values: by the settings' paths; numbers may be texts that say them.

        Returns:
            The settings that have another value now.

        Raises:
            UserError: if a value cannot be used; all stays as it was.
        """
        return self.live.change(self.next_step, values, self._with_live(self.live.at(self.next_step)), self._check_fits)

    def _with_live(self, values: Mapping[str, Any]) -> CDSPipelineConfig:
        """A copy of the configuration with other live settings."""
        changed = copy(self.config)
        changed.guidance = copy(changed.guidance)
        for path, value in values.items():
            set_value_at(changed, path, value)
        return changed

    def _check_fits(self, config: CDSPipelineConfig) -> None:
        CDSGuidance(config.guidance, self.guidance.diffusion)
        self._make_region(config)
        self.guidance.diffusion.check_prompts(config.source_prompt, config.target_prompt, PROMPT_FLAGS)

    def _take_live_settings(self, step: int) -> None:
        """Let the settings be those of a step."""
        self.next_step = step + 1
        before = {path: value_at(self.config, path) for path in LIVE_SETTINGS}
        values = self.devices.from_first(self.live.at(step))
        if before == values:
            return
        self._set(values)
        asks_other = _asked_of_views(before) != _asked_of_views(values)
        if asks_other:
            self._embed_prompts()
        self.region = self._make_region(self.config)
        if (asks_other or before["region.kind"] != values["region.kind"]) and self.region is not None:
            self._look_at_views(self.region, step)

    def _set(self, values: Mapping[str, Any]) -> None:
        for path, value in values.items():
            set_value_at(self.config, path, value)
        check_live_settings(self.config)

    def _prepare_source(self, folder: Path) -> None:
        """Bring into the run folder what the first step needs of the unedited field; the rest follows when drawn."""
        config = self.config

        def render_view(index: int) -> Float[Tensor, "3 height width"]:
            seed = seed_for(self.seed, "training view", index)
            return self.unedited.render_view(self.views[index], index, seed)[0].clamp(0, 1)

        self.source = ViewStore(
            folder,
            render_view,
            render_frame=lambda index: self.unedited.render_frame(self.orbit[index]),
            encode=self.guidance.diffusion.encode,
            views_in_memory=config.views_in_memory,
        )
        self.datamanager.train_dataset.picture = self.source.made_image  # for the viewer
        self.datamanager.eval_dataset.picture = lambda index: None
        self.region = self._make_region(config)
        if self.devices.from_first(self.source.complete(len(self.views), len(self.orbit))):
            return
        self.unedited  # noqa: B018 - now, so that a source that has gone is told before the first step
        self._check_guidance_takes_the_views()
        first = [self.datamanager.next_view(0, self.seed)] if self.region is None else self.region.prepare()
        own = first[self.devices.rank :: self.devices.number]
        for index in progress_bar(own, "Source views", unit="view"):
            self.source.latents(index)
        if self.region is None:
            return
        self._look_at_views(self.region, step=0)
        for index in own:
            self.region.of_view(index, step=0)

    def _look_at_views(self, region: Region, step: int) -> None:
        """Measure what a region needs of the views that have a say before a step, each device its share of them."""
        for index in progress_bar(
            region.prepare(step)[self.devices.rank :: self.devices.number], "Region", unit="view"
        ):
            region.look_at(index)
        self.devices.exchange(None)  # all have been looked at

    def _make_region(self, config: CDSPipelineConfig) -> Region | None:
        """Where an edit may act; None for anywhere.

        Raises:
            UserError: if it cannot be made, such as one of masks that are not there.
        """
        if not config.w_keep and config.region.kind == "auto":
            return None
        asked = _asked_of_views({path: value_at(config, path) for path in LIVE_SETTINGS})
        at_first = _asked_of_views(self.live.at_first)
        return Region(
            config.region,
            self.source,
            self.views,
            order=[self.datamanager.next_view(step, self.seed) for step in range(len(self.views))],
            latent_pixels=self.guidance.diffusion.image_multiple,
            nearest=NEAREST_TO_EDIT * viewed_distance(self.datamanager.train_dataset.cameras),
            distance=lambda camera: self.unedited.render_distance(camera),
            measure=self._measure_relevance,
            masks=masks_of_capture(self.datamanager.train_dataparser_outputs.mask_filenames),
            names=self.datamanager.train_dataparser_outputs.image_filenames,
            asked={kind: _fingerprint(texts) for kind, texts in asked.items() if texts != at_first[kind]},
        )

    def _measure_relevance(
        self, latents: Float[Tensor, "1 channels h w"], kind: str, index: int
    ) -> Float[Tensor, "1 1 h w"]:
        texts = (self.source_text, self.target_text)
        if kind == "text":
            assert self.region_text is not None
            texts = (nothing(self.region_text), self.region_text)
        generator = torch.Generator().manual_seed(seed_for(self.seed, "relevance", index))
        relevance = relevance_map(self.guidance.diffusion, latents, *texts, generator)
        if not are_finite([relevance]):
            raise FloatingPointError(f"the relevance in the source's view {index} is not finite")
        return relevance

    def _check_guidance_takes_the_views(self) -> None:
        """Call the guidance once on empty latents: what it cannot take is told before all source views are rendered."""
        diffusion = self.guidance.diffusion
        sides = (int(side) // diffusion.image_multiple for side in (self.views[0].height, self.views[0].width))
        latents = torch.zeros(self.config.draws_per_view, diffusion.unet.config["in_channels"], *sides)
        self.guidance(
            latents,
            latents.clone().requires_grad_(),
            self.source_text,
            self.target_text,
            generator=torch.Generator().manual_seed(self.seed),
            step=0,
            steps=self.steps,
        )
        self.guidance.strengths.clear()  # a trial is no step

    def get_average_eval_image_metrics(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Metrics on the evaluation photographs, which are loaded now if they are not."""
        self.datamanager.load_eval_photographs()
        return super().get_average_eval_image_metrics(*args, **kwargs)


def _why_not_finite(losses: Mapping[str, Tensor]) -> str:
    return f"the loss is not finite: {', '.join(f'{name} {loss.item():.3g}' for name, loss in losses.items())}"


def _asked_of_views(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The texts, among the live settings, of which the views are asked, by the kind of region that is for."""
    return {"auto": (values["source_prompt"], values["target_prompt"]), "text": (values["region.text"],)}


def _fingerprint(texts: tuple[str, ...]) -> str:
    """Differs between texts, and is the same for the same ones."""
    return "-" + hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
