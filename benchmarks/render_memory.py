"""Peak memory of a view's rendering and its backward pass: the plain graph against chunks under checkpointing.

    python benchmarks/render_memory.py --sides 64 128 256

The field is a nerfacto with random weights (torch implementation). By default a small one, so that the plain graph of
256x256 fits into a few GB; --full takes nerfacto's own sizes, whose plain graph needs 0.3 MB a ray.
"""

from __future__ import annotations

import argparse
import time

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from peak_memory import peak_memory
from torch import Tensor

from cds_nerf.fields.ray_rendering import camera_rays, render_rays
from cds_nerf.nerf import compatibility

MIB = 2**20


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    model = make_field(arguments.full, device)
    for sampler in (model.proposal_sampler.initial_sampler, model.proposal_sampler.pdf_sampler):
        sampler.train_stratified = False  # jitter is drawn chunk by chunk: without it both ways see the same samples

    def step(side: int, rays_per_chunk: int, checkpointing: bool) -> list[Tensor]:
        pose = torch.eye(4, device=device)[None, :3]
        half = side / 2
        camera = Cameras(pose, fx=2 * half, fy=2 * half, cx=half, cy=half, width=side, height=side)
        rays = camera_rays(camera, 0)
        for name in ("origins", "directions", "pixel_area"):
            setattr(rays, name, getattr(rays, name).to(next(model.field.parameters()).dtype))
        image, regularisers = render_rays(model, rays, rays_per_chunk, checkpointing)
        (image.square().sum() + sum(regularisers.values())).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return gradients

    chunk = arguments.rays_per_chunk
    print(f"{'full' if arguments.full else 'small'} nerfacto on {device}, chunks of {chunk} rays\n")
    titles = ("plain, MiB", "checkpointed, MiB", "ratio", "time ratio", "gradient difference")
    print(f"{'image':>9}" + "".join(f"{title:>{len(title) + 2}}" for title in titles))
    for side in arguments.sides:
        step(side, chunk, True)  # whatever is allocated once is allocated here
        start = time.perf_counter()
        whole = step(side, side * side, False)
        middle = time.perf_counter()
        chunked = step(side, chunk, True)
        end = time.perf_counter()
        difference = relative_difference(chunked, whole)
        del whole, chunked
        plain = peak_memory(lambda: step(side, side * side, False), device)  # noqa: B023
        checkpointed = peak_memory(lambda: step(side, chunk, True), device)  # noqa: B023
        values = (plain / MIB, checkpointed / MIB, checkpointed / plain, (end - middle) / (middle - start), difference)
        texts = [f"{value:{form}}" for value, form in zip(values, (".1f", ".1f", ".3f", ".2f", ".1e"), strict=True)]
        row = "".join(f"{text:>{len(title) + 2}}" for text, title in zip(texts, titles, strict=True))
        print(f"{f'{side}x{side}':>9}{row}", flush=True)

    model.double()
    side = min(arguments.sides)
    difference = relative_difference(step(side, side * side // 4, True), step(side, side * side, False))
    print(f"\nin float64, {side}x{side} in four chunks: gradient difference {difference:.1e}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256], help="sides of the square images")
    parser.add_argument("--rays-per-chunk", type=int, default=4096, help="as --pipeline.rays-per-chunk")
    parser.add_argument("--full", action="store_true", help="nerfacto's own sizes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    return parser.parse_args()


def make_field(full: bool, device: torch.device) -> NerfactoModel:
    """A nerfacto with random weights, in training mode, whose proposal networks follow in every call."""
    compatibility.apply()
    torch.manual_seed(0)
    small = NerfactoModelConfig(
        num_levels=8,
        log2_hashmap_size=14,
        num_nerf_samples_per_ray=24,
        num_proposal_iterations=1,
        num_proposal_samples_per_ray=(48,),
    )
    config = NerfactoModelConfig() if full else small
    config.implementation = "torch"
    model = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1).to(device)
    compatibility.update_proposals_in_every_call(model)
    return model.train()


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Norm of the difference over the norm of the other, over all tensors."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True))
    return (difference / sum(float(b.double().square().sum()) for b in other)) ** 0.5


if __name__ == "__main__":
    main()
