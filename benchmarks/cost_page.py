"""Write the tables of docs/cost.md: what fits into a GPU's memory, and what a step takes in UNet samples.

    python benchmarks/cost_page.py
    python benchmarks/cost_page.py --measure

The tables are computed, from bytes and operations that --measure finds out and writes into benchmarks/cost.json: it
takes the guidance as it is through models of the true architectures on fake tensors, which have shapes and no memory,
and renders rays of a nerfacto, and splats whose rasteriser is left out. It takes some minutes, on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from fake_memory import LiveBytes, flops
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from prior_architectures import ARCHITECTURES, Architecture
from render_memory import make_field
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from cds_nerf import CDSGuidance, CDSGuidanceConfig
from cds_nerf.diffusion.memory import checkpoint_gradients
from cds_nerf.fields.ray_rendering import camera_rays, render_rays
from cds_nerf.fields.splat_field import SplatField
from cds_nerf.nerf import compatibility

MEASURED = Path(__file__).with_name("cost.json")
PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
GIB = 2**30
TIERS = (8, 12, 16, 24, 48)
"""Sizes of GPUs' memory, in GiB."""
USABLE = 0.97
"""Of a card's nominal memory, what programs get."""
ALLOWANCE = GIB
"""For what is not measured: CUDA's context, work spaces of convolutions, and what lies between the blocks."""
RAYS = 4096
"""As --pipeline.rays-per-chunk by default."""
FEWER_RAYS = 1024
GAUSSIANS = 1_000_000
RASTERISED_GAUSSIAN = 132 + 10 * 24
"""Bytes for each Gaussian that gsplat's kernels hold: not measured, but counted in its buffers. Projections (radius,
mean, depth, conic, opacity, colours: 52) and their gradients with those of means, rotations and scales (80); and for
each of ten tiles, which is a guess, its key and index twice over, for they are sorted."""
COPIES_WHILE_EDITING = 5
"""Of a field's parameters: themselves, gradients, Adam's two averages, the unedited field."""
COPIES_IN_THE_OPTIMISER = COPIES_WHILE_EDITING + 3
"""And what a step that is not finite is taken back to: parameters and averages."""

Field = Literal["nerfacto", "splats"]


@dataclass(frozen=True)
class Flags:
    """Settings that take less memory, as far as they are used."""

    fewer_rays: bool = False
    encoded_twice: bool = False
    checkpointed: bool = False
    offloaded: bool = False
    no_contrast: bool = False

    def letters(self) -> str:
        """The settings as the table names them."""
        used = (self.fewer_rays, self.encoded_twice, self.checkpointed, self.offloaded, self.no_contrast)
        return "".join(letter for letter, is_used in zip(LETTERS, used, strict=True) if is_used)


LETTERS = {
    "r": f"--pipeline.rays-per-chunk {FEWER_RAYS}",
    "e": "--pipeline.encoder-checkpointing True",
    "c": "--pipeline.diffusion-model.gradient-checkpointing True",
    "o": "--pipeline.diffusion-model.cpu-offload True",
    "w": "--pipeline.guidance.w-cut 0",
}


def choices(field: Field) -> Iterator[Flags]:
    """From what costs nothing to what costs most: time first, and the contrastive loss last."""
    rays = (False, True) if field == "nerfacto" else (False,)
    for no_contrast in (False, True):
        for offloaded in (False, True):
            for checkpointed in (False, True):
                for encoded_twice in (False,) if offloaded else (False, True):  # which is always so, offloaded
                    for fewer_rays in rays:
                        yield Flags(fewer_rays, encoded_twice, checkpointed, offloaded, no_contrast)


def peak(measured: dict[str, Any], prior: str, size: int, field: Field, flags: Flags) -> int:
    """The most bytes that an edit holds, by the parts of a step.

    Args:
        measured: what `--measure` found.
        prior: a name in it.
        size: side of the views, in pixels.
        field: what is edited.
        flags: with which settings.
    """
    model, kind = measured["priors"][prior], measured[field]
    step = model["sizes"][str(size)]["checkpointed" if flags.checkpointed else "plain"]
    unet, vae = model["unet"], model["vae"]
    if field == "nerfacto":
        parameters, graph = kind["parameters"], 0
        rendering = kind["rendering"] + kind["ray"] * (FEWER_RAYS if flags.fewer_rays else RAYS)
    else:
        parameters = kind["gaussian"] * GAUSSIANS
        graph = rendering = (kind["drawing"] + RASTERISED_GAUSSIAN) * GAUSSIANS
    weights = max(unet, vae) if flags.offloaded else unet + vae
    field_bytes = COPIES_WHILE_EDITING * parameters
    score = step["score_dds" if flags.no_contrast else "score"]
    relevance = step["score_dds"] * 6 // 4  # as many samples at once, where that score has four
    kept = 0 if flags.encoded_twice or flags.offloaded else step["encoder_graph"]  # for the way back
    parts = [
        (0 if flags.offloaded else unet + vae + model["text"]) + parameters,  # the prompts are embedded
        weights + field_bytes + rendering,
        (vae if flags.offloaded else weights) + field_bytes + graph + max(step["encode"], step["encode_backward"]),
        (unet if flags.offloaded else weights) + field_bytes + graph + max(kept + score, relevance),
        weights + COPIES_IN_THE_OPTIMISER * parameters,
    ]
    return ALLOWANCE + max(parts)


def best_flags(measured: dict[str, Any], prior: str, size: int, field: Field, tier: int) -> Flags | None:
    """The settings that cost least of those with which an edit fits; None if it does not."""
    return next((f for f in choices(field) if peak(measured, prior, size, field, f) <= USABLE * tier * GIB), None)


def step_in_samples(measured: dict[str, Any], prior: str, size: int, flags: Flags) -> float:
    """How many UNet samples without gradient have as many operations as a step's encoding, score and backward pass."""
    model = measured["priors"][prior]["sizes"][str(size)]
    step = model["checkpointed" if flags.checkpointed else "plain"]
    score = step["score_dds_flops" if flags.no_contrast else "score_flops"]
    return (score + vae_flops(step, flags)) / model["sample_flops"]


def vae_flops(step: dict[str, int], flags: Flags) -> int:
    """What the VAE takes in a step; what was measured encodes twice."""
    twice = step["encode_flops"] + step["encode_backward_flops"]
    return twice if flags.encoded_twice or flags.offloaded else twice - step["encode_flops"]


def measure() -> dict[str, Any]:
    """Everything that the tables are computed from."""
    priors: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        sizes = {str(size): measure_prior(architecture, size) for size in architecture.sizes}
        priors[architecture.name] = measure_weights(architecture) | {"sizes": sizes}
    return {"priors": priors, "nerfacto": measure_nerfacto(), "splats": measure_splats()}


def measure_weights(architecture: Architecture) -> dict[str, int]:
    """The bytes of a model's parts, in float16 but for a VAE that overflows."""
    with FakeTensorMode():
        diffusion, text = architecture.make()
        weights = {name: sum(p.nbytes for p in part.parameters()) for name, part in parts_of(diffusion).items()}
        return weights | {"text": 2 * text}


def parts_of(diffusion: Any) -> dict[str, Any]:
    return {"unet": diffusion.unet, "vae": diffusion.vae}


def measure_prior(architecture: Architecture, size: int) -> dict[str, Any]:
    """Peaks in bytes, above the weights, and operations of a step's parts in a prior; plain and with checkpointing.

    Args:
        architecture: of the prior.
        size: side of the view, in pixels.
    """
    with FakeTensorMode():
        diffusion, _ = architecture.make()
        image = torch.rand(1, 3, size, size, requires_grad=True)
        source = torch.randn(1, 4, size // 8, size // 8)
        texts = architecture.text(), architecture.text()
        timestep = torch.tensor([500])

        def sample() -> None:
            with torch.no_grad():
                diffusion.predict_noise(source, timestep, texts[0].conditional, texts[0].pooled_conditional)

        found: dict[str, Any] = {"sample_flops": flops(sample)[0]}
        for name in ("plain", "checkpointed"):
            if name == "checkpointed":
                checkpoint_gradients(diffusion)
            parts = {"encoder_graph": held_by(lambda: diffusion.encode(image))}
            steps = {"score": CDSGuidanceConfig(), "score_dds": CDSGuidanceConfig(w_cut=0.0)}
            for score, config in steps.items():
                guidance = CDSGuidance(config, diffusion)

                def call(latents: torch.Tensor, guidance: CDSGuidance = guidance) -> Any:
                    return guidance(source, latents, *texts, timestep=timestep)

                run_step(parts, score, image, diffusion.encode, call)
            found[name] = parts
    return found


def run_step(
    parts: dict[str, int], score: str, image: torch.Tensor, encode: Callable, call: Callable[[torch.Tensor], Any]
) -> None:
    """A step as the pipeline makes it, once for its bytes and once for its operations."""
    for count in (peaks, operations):
        with LiveBytes() as live:
            # As with --pipeline.encoder-checkpointing: the encoder's activations are not alive while the UNet's are.
            found, latents = count(live, lambda: checkpoint(encode, image, use_reentrant=False))
            suffix = "_flops" if count is operations else ""
            parts[f"encode{suffix}"] = found
            parts[f"{score}{suffix}"], out = count(live, lambda: call(latents))  # noqa: B023
            parts[f"encode_backward{suffix}"], _ = count(live, lambda: out.loss.backward())  # noqa: B023
            image.grad = None


def held_by(step: Callable[[], Any]) -> int:
    """The bytes that are alive after a step, with what it returns."""
    with LiveBytes() as live:
        _result = step()
        return live.held


def peaks(live: LiveBytes, step: Callable[[], Any]) -> tuple[int, Any]:
    return live.peak_of(step)


def operations(live: LiveBytes, step: Callable[[], Any]) -> tuple[int, Any]:
    return flops(step)


def measure_nerfacto() -> dict[str, int]:
    """The bytes of nerfacto's parameters, and what rendering and its backward pass hold for each ray and besides."""
    model = make_field(full=True, device=torch.device("cpu"))
    side = 32

    def step(rays_per_chunk: int) -> None:
        image, regularisers = render_rays(model, camera_rays(camera_of(side), 0), rays_per_chunk)
        (image.square().sum() + sum(regularisers.values())).backward()

    few, many = 128, 512
    with LiveBytes() as live:
        step(few)
        held = live.held  # the gradients stay, as in any step but the first
        least, most = (live.peak_of(lambda: step(rays))[0] - held for rays in (few, many))  # noqa: B023
    ray = (most - least) // (many - few)
    return {
        "parameters": sum(parameter.nbytes for parameter in model.parameters()),
        "ray": ray,
        "rendering": least - few * ray,
    }


def camera_of(side: int) -> Cameras:
    half = side / 2
    return Cameras(torch.eye(4)[None, :3], fx=2 * half, fy=2 * half, cx=half, cy=half, width=side, height=side)


def measure_splats() -> dict[str, int]:
    """The bytes of a Gaussian's parameters, and what drawing it holds besides in all but gsplat's rasteriser."""
    count, side = 10000, 32
    compatibility.apply()
    config = SplatfactoModelConfig(random_init=True, num_random=count, sh_degree=3)
    model = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1)
    field = SplatField(model)
    camera = camera_of(side)

    def rasterise(*, width: int, height: int, viewmats: torch.Tensor, **gaussians: Any) -> Any:
        names = ("means", "quats", "scales", "opacities", "colors")
        value = sum(gaussians[name].sum() for name in names)
        image = value.expand(1, height, width, 4)
        return image, image[..., :1], {"means2d": gaussians["means"].detach()}

    rasteriser, splatfacto.rasterization = splatfacto.rasterization, rasterise

    def step() -> None:
        anchor = field.anchor_loss(lambda: field, camera, torch.zeros(1, side, side))
        assert anchor is not None
        (field.render_view(camera, 0, 0)[0].sum() + anchor).backward()

    try:
        with LiveBytes() as live:
            step()
            first = live.held  # the gradients stay
            held, _ = live.peak_of(step)
    finally:
        splatfacto.rasterization = rasteriser
    parameters = sum(value.nbytes for value in model.gauss_params.values())
    return {"gaussian": parameters // count, "drawing": (held - first) // count}


def tables(measured: dict[str, Any]) -> dict[str, str]:
    """The page's tables by their names."""
    return {
        "fields": fields_table(measured),
        "measured": measured_table(measured),
        "nerfacto": tier_table(measured, "nerfacto"),
        "splats": tier_table(measured, "splats"),
        "samples": samples_table(measured),
    }


def fields_table(measured: dict[str, Any]) -> str:
    rays, splats = measured["nerfacto"], measured["splats"]
    rows = [
        ["", "parameters", "drawing and its backward pass"],
        [
            "nerfacto",
            f"{rays['parameters'] / 1e6:.0f} MB",
            f"{rays['ray'] / 1e6:.2f} MB a ray of a chunk, and {rays['rendering'] / 1e6:.0f} MB",
        ],
        [
            "splats, each Gaussian",
            f"{splats['gaussian']} B",
            f"{splats['drawing']} B, and {RASTERISED_GAUSSIAN} B that are counted in gsplat's buffers",
        ],
    ]
    return markdown(rows, left=1)


def measured_table(measured: dict[str, Any]) -> str:
    rows = [["prior", "view", "encode", "keep", "score", "with `c`", "with `w`", "backward to the view", "with `c`"]]
    for prior, model in measured["priors"].items():
        for size, found in model["sizes"].items():
            plain, checkpointed = found["plain"], found["checkpointed"]
            values = [
                plain["encode"],
                plain["encoder_graph"],
                plain["score"],
                checkpointed["score"],
                plain["score_dds"],
            ]
            values += [plain["encode_backward"], checkpointed["encode_backward"]]
            rows.append([prior, f"{size} px", *(f"{value / 2**20:,.0f}" for value in values)])
    return markdown(rows, left=1)


def tier_table(measured: dict[str, Any], field: Field) -> str:
    rows = [["prior", "view", "by default", *(f"{tier} GB" for tier in TIERS)]]
    for prior, model in measured["priors"].items():
        for size in map(int, model["sizes"]):
            cells = []
            for tier in TIERS:
                flags = best_flags(measured, prior, size, field, tier)
                letters = "" if flags is None else f"`{flags.letters()}` " if flags.letters() else ""
                cells.append("-" if flags is None else f"{letters}{gib(peak(measured, prior, size, field, flags))}")
            rows.append([prior, f"{size} px", gib(peak(measured, prior, size, field, Flags())), *cells])
    return markdown(rows, left=1)


def samples_table(measured: dict[str, Any]) -> str:
    rows = [["prior", "view", "TFLOP a UNet sample", "a step", "with `e`", "with `c`", "with `w`", "of which the VAE"]]
    variants = (Flags(), Flags(encoded_twice=True), Flags(checkpointed=True), Flags(no_contrast=True))
    for prior, model in measured["priors"].items():
        for size, found in model["sizes"].items():
            vae = vae_flops(found["plain"], Flags()) / found["sample_flops"]
            values = [step_in_samples(measured, prior, int(size), flags) for flags in variants]
            cells = [f"{found['sample_flops'] / 1e12:.2f}", *(f"{value:.1f}" for value in (*values, vae))]
            rows.append([prior, f"{size} px", *cells])
    return markdown(rows, left=1)


def gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def markdown(rows: list[list[str]], left: int) -> str:
    """A table; the first columns are aligned to the left."""
    marks = ["---" if column < left else "---:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], marks, *rows[1:]])


def with_tables(page: str, found: dict[str, str]) -> str:
    """The page with its tables in place of those that stand there.

    Args:
        page: has, for each table, a line `<!-- table: NAME -->` before it and `<!-- end -->` after it.
        found: the tables.
    """
    for name, table in found.items():
        before, marker, rest = page.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert marker and end, f"the page has no place for the table {name}"
        page = f"{before}{marker}{table}\n{end}{after}"
    return page


@dataclass
class CostPage:
    """Rewrite the tables of docs/cost.md."""

    measure: bool = False
    """Measure anew what they are computed from."""

    def run(self) -> None:
        """Write the page."""
        if self.measure:
            MEASURED.write_text(json.dumps(measure(), indent=1) + "\n", "utf8")
        PAGE.write_text(with_tables(PAGE.read_text("utf8"), tables(json.loads(MEASURED.read_text("utf8")))), "utf8")


if __name__ == "__main__":
    tyro.cli(CostPage).run()
