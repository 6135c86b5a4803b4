"""What drawing splats in plain torch costs: time and memory, forward and backward, against pairs of Gaussian and pixel.

Run with: OMP_NUM_THREADS=1 python -m benchmarks.splat_rasterization

A pair counts where the Gaussian's alpha at the pixel is at least 1/255 and the pixel is not yet covered. Each size runs
in a process of its own, whose peak memory is reported without what it had before. Times are processor time, the least
of five, so that other programs' load changes them little.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from itertools import product

import torch

from cds_nerf.fields import gaussian_compositing
from cds_nerf.fields.splat_rasterization import rasterization

SIZES = (128, 256)
"""Of the images, in pixels."""
COUNTS = (2_000, 8_000, 32_000, 128_000)
"""Of Gaussians."""


def main() -> None:
    """Print a row for each size; with a size and a count, that row."""
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), int(sys.argv[2]))
        return
    print(
        f"{'image':>9} {'Gaussians':>9} {'pairs':>10} {'forward':>9} {'and backward':>12} {'per million':>11} {'MB':>6}"
    )
    for size, count in product(SIZES, COUNTS):
        subprocess.run([sys.executable, "-m", "benchmarks.splat_rasterization", str(size), str(count)], check=True)


def measure(size: int, count: int) -> None:
    """Time Gaussians of about two pixels' standard deviation, in a ball before the camera."""
    torch.manual_seed(0)
    focal, distance = 1.2 * size, 3.0
    scale = 2 * distance / focal
    parameters = {
        "means": torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * torch.rand(count, 1) ** (1 / 3),
        "quats": torch.randn(count, 4),
        "scales": scale * (0.3 + torch.rand(count, 3)),
        "opacities": 0.05 + 0.3 * torch.rand(count),
        "colors": 0.3 * torch.randn(count, 16, 3),
    }
    for value in parameters.values():
        value.requires_grad_()
    viewmat = torch.eye(4)
    viewmat[2, 3] = distance
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(5):
        start = time.process_time()
        image, _, info = rasterization(
            **parameters,
            viewmats=viewmat[None],
            Ks=intrinsics[None],
            width=size,
            height=size,
            sh_degree=3,
            packed=False,
        )
        forward = time.process_time() - start
        image.square().sum().backward()
        times.append((time.process_time() - start, forward))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    whole, forward = min(times)
    pairs = count_pairs(info)
    print(
        f"{size:>4}x{size:<4} {count:>9} {pairs:>10} {forward:>8.3f}s {whole:>11.3f}s {whole / pairs * 1e6:>10.3f}s "
        f"{memory:>6.0f}",
        flush=True,
    )


@torch.no_grad()
def count_pairs(info: dict) -> int:
    """How many pairs of Gaussian and pixel were composited."""
    means, conics, opacities = (info[name][0] for name in ("means2d", "conics", "opacities"))
    radii = info["radii"].reshape(1, len(means), -1)[0].expand(-1, 2)
    size = info["width"], info["height"], info["tile_size"]
    pairs = gaussian_compositing._pair_with_blocks(means, conics, opacities, info["depths"][0], radii, *size)
    runs = (gaussian_compositing._Run(pairs, *run, means, conics, opacities) for run in pairs.runs())
    return sum(int((run.alpha > 0).sum()) for run in runs)


if __name__ == "__main__":
    main()
