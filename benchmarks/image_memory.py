"""What each way to save memory saves in an edit of images, and what it costs in time.

    python benchmarks/image_memory.py --size 256

A batch of two square images goes through a model of Stable Diffusion 1.5's size with random weights: encoded, one step
of the guidance, decoded. Peaks are those of the activations, above the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from diffusers.utils.logging import set_verbosity_error
from guidance_cost import MIB, seconds, stable_diffusion_sized
from peak_memory import peak_memory
from prior_architectures import AUTOENCODER, CLIP_L
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.diffusion.memory import checkpoint_gradients, slice_vae, tile_vae

BATCH = 2
RUNS = 2
"""How often each is timed; the faster time counts, for whatever else runs on the machine only slows it."""
STAGES = ("encode", "guidance step", "decode")


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    set_verbosity_error()
    wide, narrow = (torch.float16, torch.float16) if device.type == "cuda" else (torch.float32, torch.bfloat16)
    print(f"{BATCH} images of {arguments.size}x{arguments.size} on {device}, {torch.get_num_threads()} CPU threads\n")
    print(f"{'':28}{'weights':>9}{''.join(f'{stage:>18}' for stage in STAGES)}")
    variants: list[tuple[str, torch.dtype, Callable[[LatentDiffusion], None], tuple[str, ...]]] = [
        ("float32", torch.float32, lambda diffusion: None, STAGES),
        (str(narrow).removeprefix("torch."), narrow, lambda diffusion: None, STAGES),
        ("gradient checkpointing", wide, checkpoint_gradients, ("guidance step",)),
        ("VAE tiling (4 tiles)", wide, tile_vae, ("encode", "decode")),
        ("VAE slicing", wide, slice_vae, ("encode", "decode")),
    ]
    for name, dtype, save, affected in variants:
        diffusion = model(device, dtype, arguments.size)
        save(diffusion)
        columns = [
            f"{peak_memory(run, device) / MIB:.0f} MiB {min(seconds(run, device) for _ in range(RUNS)):>5.1f} s"
            if stage in affected
            else "same"
            for stage, run in stages(diffusion, arguments.size).items()
        ]
        print(f"{name:28}{sum(map(size, parts(diffusion))) / MIB:>5.0f} MiB{''.join(f'{c:>18}' for c in columns)}")
    encoder, unet, vae = (size(part) / MIB for part in parts(diffusion))
    print(
        f"\nCPU offload keeps on the device only the part that runs: of {encoder + unet + vae:.0f} MiB of weights the "
        f"UNet's {unet:.0f}, the VAE's {vae:.0f} or the text encoder's {encoder:.0f}."
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", type=int, default=512 if cuda else 256, help="side of the images, a multiple of 64")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="cpu, cuda, cuda:1")
    return parser.parse_args()


def model(device: torch.device, dtype: torch.dtype, image_size: int) -> LatentDiffusion:
    diffusion = stable_diffusion_sized(device, dtype)
    with device:
        vae = AutoencoderKL(**AUTOENCODER, sample_size=image_size // 2)  # the size of a tile
        text_encoder = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    diffusion.vae = vae.to(dtype).eval().requires_grad_(False)
    diffusion.text_encoder = text_encoder.to(dtype)
    return diffusion


def parts(diffusion: LatentDiffusion) -> list[nn.Module]:
    return [diffusion.text_encoder, diffusion.unet, diffusion.vae]


def size(part: nn.Module) -> int:
    return sum(weight.nbytes for weight in part.parameters())


def stages(diffusion: LatentDiffusion, image_size: int) -> dict[str, Callable[[], object]]:
    """Encoding, one step of the guidance with its gradient, and decoding."""
    device = diffusion.device
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, image_size, image_size, device=device)
    source = torch.randn(BATCH, 4, image_size // 8, image_size // 8, device=device)
    target = torch.randn_like(source).requires_grad_()
    texts = [TextEmbedding(*torch.randn(2, 1, 77, 768, device=device)) for _ in range(2)]
    guidance = CDSGuidance(CDSGuidanceConfig(), diffusion)
    timestep = torch.full((BATCH,), 500)

    @torch.no_grad()
    def encode() -> None:
        diffusion.encode(images)

    def step() -> None:
        guidance(source, target, *texts, timestep, generator=torch.Generator().manual_seed(0)).loss.backward()

    @torch.no_grad()
    def decode() -> None:
        diffusion.decode(source)

    return dict(zip(STAGES, (encode, step, decode), strict=True))


if __name__ == "__main__":
    main()
