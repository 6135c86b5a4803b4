"""Whether `torch.compile` and channels_last make a step of the guidance faster, and what they change in its gradient.

    python benchmarks/compiled_guidance.py --latents 16
    python benchmarks/compiled_guidance.py --bundled

On a UNet of Stable Diffusion 1.5's size with random weights, or on the bundled one. All ways run turn by turn, so that
whatever else slows the machine slows all of them. Compiled is all of the UNet in which no features are tapped: its
down and middle blocks and the up blocks' residual blocks; a compiled module does not call hooks that it had not when it
was compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from guidance_cost import seconds, stable_diffusion_sized
from torch import Tensor, nn

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.shapes import prior_path

WAYS = ("shipped", "channels_last", "compiled", "both")


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = {way: make(way, arguments.bundled, device) for way in WAYS if way in arguments.ways}
    config = next(iter(made.values())).unet.config
    channels = config["cross_attention_dim"]
    torch.manual_seed(1)
    source = torch.randn(1, config["in_channels"], arguments.latents, arguments.latents, device=device)
    target = (source + 0.3 * torch.randn_like(source)).requires_grad_()
    noise, timestep = torch.randn_like(source), torch.tensor([500])
    unconditional, *conditional = (torch.randn(1, 77, channels, device=device) for _ in range(3))
    texts = [TextEmbedding(embedding, unconditional) for embedding in conditional]

    def gradient(way: str) -> Tensor:
        guidance = CDSGuidance(CDSGuidanceConfig(), made[way])
        generator = torch.Generator().manual_seed(0)
        loss = guidance(source, target, *texts, timestep=timestep, noise=noise, generator=generator).loss
        return torch.autograd.grad(loss, target)[0]

    gradients, first = {}, {}
    for way in made:
        start = time.perf_counter()
        gradients[way] = gradient(way)
        first[way] = time.perf_counter() - start
    rounds = [
        {way: seconds(lambda: gradient(way), device) for way in made}  # noqa: B023
        for _ in range(arguments.rounds)
    ]
    model = "the bundled UNet" if arguments.bundled else "a UNet of Stable Diffusion 1.5's size"
    print(f"{model} on {device}, latents {arguments.latents}x{arguments.latents}, {arguments.rounds} rounds\n")
    print("| | first step, s | a step, s (median) | ratio (median) | ratios | gradient's relative difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    reference = next(iter(made))
    for way in made:
        ratios = [times[way] / times[reference] for times in rounds]
        difference = (gradients[way] - gradients[reference]).norm() / gradients[reference].norm()
        median = statistics.median(times[way] for times in rounds)
        print(
            f"| {way} | {first[way]:.1f} | {median:.2f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} | {difference:.1e} |"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=16, help="side of the latents")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    parser.add_argument("--bundled", action="store_true", help="the bundled model's UNet")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="which are compared with the first")
    return parser.parse_args()


def make(way: str, bundled: bool, device: torch.device) -> LatentDiffusion:
    if bundled:
        diffusion = LatentDiffusion.from_pretrained(prior_path(), device=device)
    else:
        diffusion = stable_diffusion_sized(device, torch.float16 if device.type == "cuda" else torch.float32)
    if way in ("channels_last", "both"):
        diffusion.unet.to(memory_format=torch.channels_last)
    if way in ("compiled", "both"):
        torch._dynamo.config.recompile_limit = 64  # each size of batch and feature map is compiled by itself
        for module in without_features(diffusion.unet):
            module.compile(dynamic=False)  # inductor fails on symbolic batches here
    return diffusion


def without_features(unet: nn.Module) -> list[nn.Module]:
    """The largest parts of a UNet that have none of the self-attentions whose features are tapped."""
    return [*unet.down_blocks, unet.mid_block, *(resnet for block in unet.up_blocks for resnet in block.resnets)]


if __name__ == "__main__":
    main()
