"""How fast the field should learn: edits whose answer is known, at several learning rates.

    python benchmarks/learning_rate.py outputs/fox/cds-source/TIME --steps 200

The edit is a recolouring: each training view should become the source's own render with its colour channels turned
(red to green to blue). In place of a diffusion model, each step gets the true gradient (view minus recoloured view)
under noise of the grain of a Stable Diffusion latent, 8 pixels, of several times its strength, as score distillation
gives. Adam hardly sees a gradient's scale, so that what is found does not hang on it. Reported is the PSNR to the
recoloured source over the evaluation views, which no step has seen; "unedited" is where it starts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from nerfstudio.models.base_model import Model
from nerfstudio.utils.eval_utils import eval_setup
from torch import Tensor
from tqdm import tqdm

from cds_nerf.fields.ray_rendering import camera_rays, render_rays, rescale_camera
from cds_nerf.nerf.compatibility import update_proposals_in_every_call

LATENT_PIXELS = 8


def main() -> None:
    arguments = parse_arguments()
    _, pipeline, _, _ = eval_setup(arguments.run / "config.yml", test_mode="inference")
    model: Model = pipeline.model
    update_proposals_in_every_call(model)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    training, held_out = (
        [
            rescale_camera(cameras[i : i + 1], arguments.resolution, LATENT_PIXELS).to(model.device)
            for i in range(len(cameras))
        ]
        for cameras in (pipeline.datamanager.train_dataset.cameras, pipeline.datamanager.eval_dataset.cameras)
    )

    @torch.no_grad()
    def views(cameras: list) -> list[Tensor]:
        model.train()
        torch.manual_seed(0)
        return [render_rays(model, camera_rays(camera, index), 4096)[0] for index, camera in enumerate(cameras)]

    wanted, wanted_held_out = ([view.roll(1, dims=0) for view in views(cameras)] for cameras in (training, held_out))

    def psnr() -> float:
        errors = [F.mse_loss(view, want) for view, want in zip(views(held_out), wanted_held_out, strict=True)]
        return float(-10 * torch.stack(errors).mean().log10())

    def edit(rate: float, final: float, noise: float) -> float:
        model.load_state_dict(trained)
        groups = {name: group for name, group in model.get_param_groups().items() if name != "camera_opt"}
        optimizer = torch.optim.Adam([p for group in groups.values() for p in group], lr=rate, eps=1e-15)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, (final / rate) ** (1 / arguments.steps))
        generator = torch.Generator().manual_seed(0)
        for _ in tqdm(range(arguments.steps), desc=f"rate {rate:g} to {final:g}, noise {noise:g}", leave=False):
            index = int(torch.randint(len(training), (), generator=generator))
            model.train()
            image, regularisers = render_rays(model, camera_rays(training[index], index), 4096)
            difference = image.detach() - wanted[index]
            grain = torch.randn(1, 3, *(side // LATENT_PIXELS for side in image.shape[1:]), generator=generator)
            grain = F.interpolate(grain, size=image.shape[1:])[0].to(image)
            gradient = difference + noise * difference.square().mean().sqrt() * grain
            optimizer.zero_grad()
            ((gradient * image).sum() + sum(regularisers.values())).backward()
            optimizer.step()
            decay.step()
        return psnr()

    print(f"unedited: {psnr():.2f} dB; {arguments.steps} steps at {arguments.resolution} pixels\n")
    print(f"{'rate':>8}{'final':>9}" + "".join(f"{f'noise {noise:g}':>12}" for noise in arguments.noise))
    for rate in arguments.rates:
        for final in (rate, rate / 10):
            results = [edit(rate, final, noise) for noise in arguments.noise]
            print(f"{rate:>8g}{final:>9g}" + "".join(f"{result:>9.2f} dB" for result in results), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a trained ray-based nerfstudio run")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3, 1e-2], help="first learning rates")
    parser.add_argument("--noise", type=float, nargs="+", default=[0, 4], help="noise of the gradient over its signal")
    parser.add_argument("--steps", type=int, default=200, help="steps of each edit")
    parser.add_argument("--resolution", type=int, default=64, help="shorter side of the views, a multiple of 8")
    return parser.parse_args()


if __name__ == "__main__":
    main()
