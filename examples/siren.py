"""The guidance on a renderer that is not ours: a network that is a picture learns a photograph and is then edited.

    python examples/siren.py cat.png pig.png "a cat" "a pig" stable-diffusion-v1-5/stable-diffusion-v1-5

Anything that renders an image differentiably can take the place of the network, a SIREN (arXiv 2006.09661).
"""

import sys

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion


def edit(
    photograph: str,
    result: str,
    source_prompt: str,
    target_prompt: str,
    model: str,
    learn: int = 2000,
    steps: int = 1000,
) -> None:
    """Fit the network to the photograph for `learn` steps, then edit it for `steps`."""
    diffusion = LatentDiffusion.from_pretrained(model, device="cuda" if torch.cuda.is_available() else "cpu")
    guidance = CDSGuidance(CDSGuidanceConfig(), diffusion)
    source_text, target_text = diffusion.encode_prompt(source_prompt), diffusion.encode_prompt(target_prompt)

    photo = Image.open(photograph).convert("RGB")  # its sides are multiples of 8 pixels
    image = to_tensor(photo)[None].to(diffusion.device)
    source_latents = diffusion.encode(image)
    points = torch.cartesian_prod(*(torch.linspace(-1, 1, side) for side in image.shape[2:])).to(image.device)
    first, second, last = (torch.nn.Linear(*sides).to(image.device) for sides in ((2, 256), (256, 256), (256, 3)))
    torch.nn.init.uniform_(second.weight, -0.005, 0.005)  # a SIREN's range: sqrt(6 / 256) / 30
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters(), *last.parameters()], lr=1e-4)

    for step in range(learn + steps):
        render = last(torch.sin(30 * second(torch.sin(30 * first(points))))).T.sigmoid().reshape(image.shape)
        if step < learn:
            loss = (render - image).square().mean()
        else:
            loss = guidance(source_latents, diffusion.encode(render), source_text, target_text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_image(render, result)


if __name__ == "__main__":
    edit(*sys.argv[1:])
