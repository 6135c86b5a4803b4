"""What one step of the guidance costs, against the plain way to compute the same gradient.

    python benchmarks/guidance_cost.py --latents 32 --pairs 3

The plain way (tests/guidance/plain_cds.py) runs four UNet samples without gradient and two with, keeps the gradients of
the UNet's weights, and writes attention out; "checkpointed" is the shipped way after
`diffusion.unet.enable_gradient_checkpointing()`. They run on a UNet of Stable Diffusion 1.5's size with random
weights, turn by turn, so that whatever else slows the machine slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peak_memory import peak_memory
from torch import Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.guidance.patch_nce import patch_nce_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "guidance"))

from plain_cds import plain_cds, relative_difference

MIB = 2**20
Losses = tuple[Tensor, Tensor, Tensor]
"""The loss, and its two terms unweighted."""


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    diffusion = stable_diffusion_sized(device, torch.float16 if device.type == "cuda" else torch.float32)
    config = CDSGuidanceConfig()
    guidance = CDSGuidance(config, diffusion)
    parameters = list(diffusion.unet.parameters())

    torch.manual_seed(1)
    source = torch.randn(1, 4, arguments.latents, arguments.latents, device=device)
    target = (source + 0.3 * torch.randn_like(source)).requires_grad_()
    noise, timestep = torch.randn_like(source), torch.tensor([500], device=device)
    unconditional, *conditional = (torch.randn(1, 77, 768, device=device) for _ in range(3))
    texts = [TextEmbedding(embedding, unconditional) for embedding in conditional]

    def shipped() -> Losses:
        diffusion.unet.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        out = guidance(source, target, *texts, timestep=timestep, noise=noise, generator=generator)
        return out.loss, out.dds_loss, out.cut_loss

    def plain() -> Losses:
        diffusion.unet.requires_grad_(True)
        generators = [torch.Generator().manual_seed(0)]
        # With the shipped PatchNCE: what is compared is how the UNet is run.
        return plain_cds(config, diffusion, source, target, *texts, timestep, noise, generators, shipped_patch_nce)

    def checkpointed() -> Losses:
        diffusion.unet.enable_gradient_checkpointing()
        return shipped()

    def step(losses: Callable[[], Losses]) -> None:
        target.grad = None
        diffusion.unet.disable_gradient_checkpointing()
        losses()[0].backward()

    def gradients(losses: Callable[[], Losses]) -> list[Tensor]:
        _, *terms = losses()
        return [torch.autograd.grad(term, target, retain_graph=True)[0] for term in terms]

    differences = [relative_difference(*pair) for pair in zip(gradients(shipped), gradients(plain), strict=True)]
    step(plain)  # from here on the weights' gradients are allocated, as in any step but the first
    ways = (plain, shipped, checkpointed)
    rounds = [[seconds(lambda: step(way), device) for way in ways] for _ in range(arguments.pairs)]  # noqa: B023
    peaks = [peak_memory(lambda: step(way), device) for way in ways]  # noqa: B023

    weights = sum(p.nbytes for p in parameters)
    weight_gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    totals = [weights + peak + (weight_gradients if way is plain else 0) for way, peak in zip(ways, peaks, strict=True)]
    print(f"{diffusion.dtype} on {device}, latents {arguments.latents}x{arguments.latents}, {arguments.pairs} rounds\n")
    print(f"{'':40}{'plain':>9}{'shipped':>9}{'ratio':>7}{'checkpointed':>14}{'ratio':>7}")
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    time_ratios = [statistics.median(each[i] / each[0] for each in rounds) for i in (1, 2)]
    show("time of a step, s (median of ratios)", times, time_ratios, digits=2)
    for name, held in (("activations at the peak, MiB", peaks), ("with weights and their gradients, MiB", totals)):
        show(name, [number / MIB for number in held], [held[i] / held[0] for i in (1, 2)], digits=0)
    print(f"\nrelative gradient difference: dds {differences[0]:.1e}, contrastive {differences[1]:.1e}")
    print("time ratios of the rounds: " + ", ".join(f"{each[1] / each[0]:.3f}" for each in rounds))


def show(name: str, values: list[float], ratios: list[float], digits: int) -> None:
    plain, shipped, checkpointed = (f"{value:.{digits}f}" for value in values)
    print(f"{name:40}{plain:>9}{shipped:>9}{ratios[0]:>7.3f}{checkpointed:>14}{ratios[1]:>7.3f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=32, help="side of the latents; an image is 8 times as large")
    parser.add_argument("--pairs", type=int, default=3, help="how often each is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    return parser.parse_args()


def stable_diffusion_sized(device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """Stable Diffusion 1.5's UNet with random weights (860 million), and its noise schedule."""
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return LatentDiffusion(unet=unet if dtype == torch.float32 else unet.to(dtype), scheduler=scheduler)


def shipped_patch_nce(query: Tensor, key: Tensor, positions: Tensor, temperature: float) -> Tensor:
    """`patch_nce_loss` of one pair of feature maps [C,h,w]."""
    return patch_nce_loss(query[None], key[None], positions[None], temperature).sum()


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """How long a step takes."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
