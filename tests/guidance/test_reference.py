"""The guidance agrees with the reference implementation, whose outputs are in tests/reference."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from plain_cds import relative_difference
from safetensors import safe_open
from torch import Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding

REFERENCE = Path(__file__).parents[1] / "reference" / "cds_reference_sd1.safetensors"
TOLERANCE = 5e-5


class Reference:
    def __init__(self) -> None:
        with safe_open(REFERENCE, "pt") as file:
            self.meta = json.loads(file.metadata()["meta"])
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        unet = UNet2DConditionModel(**self.meta["unet"])
        weights = {k.removeprefix("unet."): v for k, v in self.tensors.items() if k.startswith("unet.")}
        unet.load_state_dict(weights)
        self.diffusion = LatentDiffusion(unet=unet, scheduler=DDIMScheduler(**self.meta["scheduler"]))
        self.texts = [
            TextEmbedding(self.tensors[f"text.{name}"], self.tensors["text.uncond"]) for name in ("source", "target")
        ]

    def guidance(self, case: dict[str, Any]) -> CDSGuidance:
        config = CDSGuidanceConfig(
            guidance_scale=self.meta["guidance_scale"],
            w_dds=case["w_dds"],
            w_cut=case["w_cut"],
            patch_sizes=tuple(case["patch_sizes"]),
            n_patches=10_000,
        )
        return CDSGuidance(config, self.diffusion)


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    yield Reference()


@pytest.mark.parametrize("number", range(4))
def test_gradients_and_loss_are_the_references(reference: Reference, number: int) -> None:
    case = reference.meta["cases"][number]
    expected = {
        key.split(".")[1]: value for key, value in reference.tensors.items() if key.startswith(f"case{number}.")
    }
    target = expected["target_latents"].requires_grad_()
    out = reference.guidance(case)(
        expected["source_latents"],
        target,
        *reference.texts,
        timestep=torch.tensor([case["timestep"]]),
        noise=expected["noise"],
    )
    (dds_gradient,) = torch.autograd.grad(case["w_dds"] * out.dds_loss, target, retain_graph=True)
    (cut_gradient,) = torch.autograd.grad(case["w_cut"] * out.cut_loss, target, retain_graph=True)
    (gradient,) = torch.autograd.grad(out.loss, target)
    assert relative_difference(dds_gradient, expected["dds_gradient"]) < TOLERANCE
    assert relative_difference(cut_gradient, expected["cut_gradient"]) < TOLERANCE
    assert relative_difference(gradient, expected["dds_gradient"] + expected["cut_gradient"]) < TOLERANCE
    assert out.cut_loss.item() == pytest.approx(expected["cut_loss"].item(), rel=1e-5)


def test_an_edit_follows_the_references_trajectory(reference: Reference) -> None:
    trajectory = reference.meta["trajectory"]
    guidance = reference.guidance(trajectory)
    source = reference.tensors["trajectory.source_latents"]
    target = source.clone().requires_grad_()
    optimizer = torch.optim.SGD([target], lr=trajectory["lr"])
    for step in range(trajectory["steps"]):
        optimizer.zero_grad()
        guidance(
            source,
            target,
            *reference.texts,
            timestep=reference.tensors["trajectory.timesteps"][step].reshape(1),
            noise=reference.tensors["trajectory.noise"][step],
        ).loss.backward()
        optimizer.step()
    final = reference.tensors["trajectory.final_latents"]
    assert relative_difference(target.detach(), final) < TOLERANCE
    assert relative_difference(target.detach() - source, final - source) < TOLERANCE
