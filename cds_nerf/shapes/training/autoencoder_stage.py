"""Trains the autoencoder of the prior, and normalises its latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn

from cds_nerf.shapes.training.loop import Worker, train
from cds_nerf.shapes.training.renders import SIZE, Renders, random_renders

CROP_STEPS, CROP_BATCH, CROP_RATE = 3000, 32, 1.5e-3
WHOLE_STEPS, WHOLE_BATCH, WHOLE_RATE = 1300, 16, 8e-4
KL_WEIGHT = 5e-4
BLURRED = 0.25
"""Share of the training images that are blurred, as the views of a field are."""


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder: 64x64 pixels to 16x16 latents of 8 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class AutoencoderObjective(nn.Module):
    """Reconstruction and the divergence of the latents from a standard normal distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = new_autoencoder()

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The losses of images in -1..1; the noise [B,C,h,w] draws the latents."""
        posterior = self.vae.encode(images).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        difference = self.vae.decode(mean + deviation * noise).sample.float() - images
        gradients = (difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()) / 2
        kl = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
        return {
            "l1": 0.5 * difference.abs().mean(),
            "mse": 4 * difference.square().mean(),
            "gradients": 0.25 * gradients,
            "kl": KL_WEIGHT * kl,
        }


def train_autoencoder(worker: Worker, renders: Renders) -> AutoencoderKL:
    """The trained autoencoder: first on crops, which are cheaper, then on whole images."""
    torch.manual_seed(worker.seed)
    objective = AutoencoderObjective()
    stages = (
        ("crops", SIZE // 2, CROP_STEPS, CROP_BATCH, CROP_RATE),
        ("whole", SIZE, WHOLE_STEPS, WHOLE_BATCH, WHOLE_RATE),
    )
    for name, size, steps, batch_size, rate in stages:

        def batch(step: int, generator: Generator, size: int = size, count: int = batch_size // worker.count) -> tuple:
            chosen = torch.randint(len(renders.images), (count,), generator=generator)
            top, left = torch.randint((SIZE - size) // 4 + 1, (2,), generator=generator).tolist()
            images = renders.images[chosen][:, :, 4 * top : 4 * top + size, 4 * left : 4 * left + size] / 127.5 - 1
            blurred = int(BLURRED * count)
            images[:blurred] = F.interpolate(F.avg_pool2d(images[:blurred], 2), scale_factor=2.0, mode="bilinear")
            return images, torch.randn((count, 8, size // 4, size // 4), generator=generator)

        train(worker, f"autoencoder-{name}", objective, batch, steps, rate)
    vae = objective.vae.eval().requires_grad_(False)
    # Renders that are the same for every worker.
    normalise_latents(vae, random_renders(504, worker.seed + worker.count, progress=False).images / 127.5 - 1)
    return vae


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 over the images [B,3,H,W] in -1..1, within the VAE's own layers.

    The scaling factor, one for all channels, could not.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    quantise, dequantise = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    quantise.weight[:channels] /= deviation[:, None, None, None]
    quantise.bias[:channels] = (quantise.bias[:channels] - mean) / deviation
    quantise.bias[channels:] -= 2 * deviation.log()  # the logarithms of the variances
    dequantise.bias += dequantise.weight[:, :, 0, 0] @ mean
    dequantise.weight *= deviation[None, :, None, None]


@torch.no_grad()
def encode_renders(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The latents [B,8,16,16] of images [B,3,64,64] of bytes: the posterior means."""
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        return torch.cat([vae.encode(part / 127.5 - 1).latent_dist.mean.float() for part in images.split(64)])
