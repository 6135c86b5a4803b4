"""Editing images through the library: the reference's trajectory, batches, seeds, masks, interruption."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_stable_diffusion import LATENT_PIXELS, make_pipeline
from torch import Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding, edit_image
from cds_nerf.diffusion.model_settings import ModelSettings
from cds_nerf.errors import UserError
from cds_nerf.image.latent_descent import descend_latents

REFERENCE = Path(__file__).parents[1] / "reference" / "cds_reference_sd1.safetensors"


@pytest.fixture(scope="module")
def diffusion() -> LatentDiffusion:
    return make_diffusion(torch.float32)


def make_diffusion(dtype: torch.dtype) -> LatentDiffusion:
    parts = make_pipeline().to(dtype).components
    return LatentDiffusion(**{name: parts[name] for name in ("unet", "scheduler", "vae", "text_encoder", "tokenizer")})


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(7))


def test_given_timesteps_and_noise_the_latents_follow_the_reference_trajectory() -> None:
    tensors = load_file(REFERENCE)
    with safe_open(REFERENCE, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    unet = UNet2DConditionModel(**meta["unet"])
    unet.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("unet.")})
    text = {name: tensors[f"text.{name}"] for name in ("source", "target", "uncond")}
    trajectory = meta["trajectory"]

    config = CDSGuidanceConfig(
        w_dds=trajectory["w_dds"], w_cut=trajectory["w_cut"], patch_sizes=tuple(trajectory["patch_sizes"])
    )
    source = tensors["trajectory.source_latents"]
    *_, last = descend_latents(
        CDSGuidance(config, LatentDiffusion(unet, DDIMScheduler(**meta["scheduler"]))),
        source,
        TextEmbedding(text["source"], text["uncond"]),
        TextEmbedding(text["target"], text["uncond"]),
        steps=trajectory["steps"],
        learning_rate=trajectory["lr"],
        timesteps=tensors["trajectory.timesteps"],
        noise=tensors["trajectory.noise"],
    )

    moved = (tensors["trajectory.final_latents"] - source).norm()
    assert (last.latents - tensors["trajectory.final_latents"]).norm() < 1e-4 * moved


@pytest.mark.slow
def test_defaults_are_the_reference_settings(diffusion: LatentDiffusion, images: Tensor) -> None:
    config = CDSGuidanceConfig(guidance_scale=7.5, w_cut=3.0, min_timestep=0.05, max_timestep=0.95)
    explicit = {"config": config, "steps": 200, "learning_rate": 0.1, "seed": 0}
    default, reference = (
        edit_image(images[0, :, :16, :16], "a cat", "a pig", diffusion, progress=False, **settings)
        for settings in ({}, explicit)
    )
    assert torch.equal(default.latents, reference.latents)


def test_defaults_are_those_that_the_model_carries(images: Tensor) -> None:
    diffusion = make_diffusion(torch.float32)
    diffusion.settings = ModelSettings(
        guidance={"cds": {"w_cut": 1.0}, "dds": {}}, image={"steps": 2, "learning_rate": 0.02}
    )
    image = images[0, :, :16, :16]
    explicit = {"config": CDSGuidanceConfig(w_cut=1.0), "steps": 2, "learning_rate": 0.02}
    own, told = (edit_image(image, "a cat", "a pig", diffusion, progress=False, **said) for said in ({}, explicit))
    assert torch.equal(own.latents, told.latents)
    plain = edit_image(image, "a cat", "a pig", diffusion, CDSGuidanceConfig(), steps=1, progress=False)
    assert len(plain.losses["dds_loss"]) == 1 and not torch.equal(plain.latents, own.latents)


@pytest.mark.usefixtures("float64_by_default")
def test_images_of_one_batch_come_out_as_each_alone(images: Tensor) -> None:
    diffusion = make_diffusion(torch.float64)  # so that nothing hides behind rounding
    targets = ["a pig", "a dog", "a cow"]
    settings = {"steps": 3, "seed": 5, "progress": False, "config": CDSGuidanceConfig(n_patches=20)}
    together = edit_image(images.double(), "a cat", targets, diffusion, **settings)
    for index, target in enumerate(targets):
        alone = edit_image(images[index].double(), "a cat", target, diffusion, **settings)
        torch.testing.assert_close(together.latents[index], alone.latents[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(together.image[index], alone.image, rtol=0, atol=1e-10)


def test_a_seed_repeats_the_result_exactly_and_another_does_not(diffusion: LatentDiffusion, images: Tensor) -> None:
    first, again, other = (
        edit_image(images[0], "a cat", "a pig", diffusion, steps=3, seed=seed, progress=False) for seed in (1, 1, 2)
    )
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.latents, again.latents)
    assert first.losses == again.losses
    assert not torch.equal(first.latents, other.latents)


@pytest.mark.parametrize(
    "change",
    [
        {"config": CDSGuidanceConfig(w_cut=0.3)},
        {"config": CDSGuidanceConfig(w_dds=0.5)},
        {"config": CDSGuidanceConfig(guidance_scale=3.0)},
        {"config": CDSGuidanceConfig(n_patches=8)},
        {"config": CDSGuidanceConfig(patch_sizes=(1,))},
        {"config": CDSGuidanceConfig(temperature=0.2)},
        {"config": CDSGuidanceConfig(min_timestep=0.9)},
        {"config": CDSGuidanceConfig(max_timestep=0.1)},
        {"config": CDSGuidanceConfig(contrastive_query="target")},
        {"config": CDSGuidanceConfig(contrastive_layers=(0,))},
        {"config": CDSGuidanceConfig(relative_w_cut=0.5)},
        {"config": CDSGuidanceConfig(timestep_schedule="decreasing")},
        *[{"config": CDSGuidanceConfig(score=score)} for score in ("dds", "sds", "pds", "ids")],
        {"learning_rate": 0.05},
        {"steps": 3},
    ],
    ids=str,
)
def test_every_setting_acts(diffusion: LatentDiffusion, images: Tensor, change: dict) -> None:
    settings = {"steps": 2, "progress": False}
    default = edit_image(images[0], "a cat", "a pig", diffusion, **settings)
    changed = edit_image(images[0], "a cat", "a pig", diffusion, **{**settings, **change})
    assert not torch.equal(default.latents, changed.latents)


def test_outside_the_mask_pixels_and_latents_are_exactly_the_inputs(diffusion: LatentDiffusion, images: Tensor) -> None:
    mask = torch.zeros(32, 48)
    mask[9:30, 14:41] = 1
    result = edit_image(images[0], "a cat", "a pig", diffusion, steps=3, learning_rate=10, mask=mask, progress=False)
    outside = (mask == 0).expand(3, -1, -1)
    assert torch.equal(result.image[outside], images[0][outside])
    assert not torch.equal(result.image[~outside], images[0][~outside])
    moved = (result.latents != result.source_latents).any(dim=1)[0]
    touched = torch.zeros_like(moved)
    touched[9 // LATENT_PIXELS : 30 // LATENT_PIXELS + 1, 14 // LATENT_PIXELS : 41 // LATENT_PIXELS + 1] = True
    assert torch.equal(moved, touched)


@pytest.mark.parametrize("kind", ["bools", "bytes", "ones", "floats to 255", "RGBA", "16 bits", "erased"])
def test_masks_of_every_kind_are_the_same_mask(diffusion: LatentDiffusion, images: Tensor, kind: str) -> None:
    white = np.zeros((32, 48), dtype=np.uint8)
    white[9:30, 14:41] = 255
    photo = Image.fromarray((images[1] * 255).byte().permute(1, 2, 0).numpy())
    photo.putalpha(Image.fromarray(white))
    masks = {
        "bools": torch.from_numpy(white > 0),
        "bytes": torch.from_numpy(white),
        "ones": torch.from_numpy(white // 255)[None],
        "floats to 255": torch.from_numpy(white).float(),
        "RGBA": Image.fromarray(white).convert("RGBA"),
        "16 bits": Image.fromarray(white.astype(np.uint16)),
        "erased": photo,
    }
    settings = {"steps": 1, "learning_rate": 10, "progress": False}
    plain = edit_image(images[0], "a cat", "a pig", diffusion, mask=torch.from_numpy(white / 255), **settings)
    other = edit_image(images[0], "a cat", "a pig", diffusion, mask=masks[kind], **settings)
    assert torch.equal(plain.image, other.image)


def test_the_edit_fades_in_from_the_mask_s_seam(diffusion: LatentDiffusion, images: Tensor) -> None:
    mask = torch.zeros(32, 48)
    mask[:, 20:] = 1
    masked = edit_image(images[0], "a cat", "a pig", diffusion, steps=1, mask=mask, progress=False).image
    edited = diffusion.decode(
        edit_image(images[0], "a cat", "a pig", diffusion, steps=1, mask=mask, progress=False).latents
    )[0]
    share = ((masked - images[0]) / (edited - images[0])).median(dim=0).values.median(dim=0).values
    torch.testing.assert_close(share[18:27], torch.tensor([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1]), rtol=0, atol=1e-4)


def test_ctrl_c_gives_what_there_is(diffusion: LatentDiffusion, images: Tensor) -> None:
    def interrupt(step) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    result = edit_image(images[0], "a cat", "a pig", diffusion, steps=9, callback=interrupt, progress=False)
    whole = edit_image(images[0], "a cat", "a pig", diffusion, steps=2, progress=False)
    assert result.interrupted
    assert not whole.interrupted
    assert torch.equal(result.image, whole.image)
    assert len(result.losses["dds_loss"]) == len(result.losses["cut_loss"]) == 2


def test_a_pil_image_of_any_size_comes_back_as_one_at_the_model_s_size(diffusion: LatentDiffusion) -> None:
    image = Image.effect_noise((60, 90), 80).convert("RGBA")
    image.getexif()[0x0112] = 6  # seen a quarter turn to the right
    result = edit_image(image, "a cat", "a pig", diffusion, steps=1, mask=Image.new("L", (90, 60), 255), progress=False)
    assert isinstance(result.image, Image.Image)
    assert (result.image.size, result.image.mode) == ((96, 64), "RGB")


def test_nothing_is_drawn_from_the_global_random_state(diffusion: LatentDiffusion, images: Tensor) -> None:
    before = torch.get_rng_state()
    edit_image(images[0], "a cat", "a pig", diffusion, steps=1, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source_prompt": " "}, "source_prompt is missing"),
        ({"target_prompt": "a cat"}, "both 'a cat'"),
        ({"target_prompt": ["a pig", "a dog"]}, "2 prompts for 1 images"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"image": torch.rand(3, 30, 48)}, "nearest that fit"),
        ({"image": torch.rand(1, 32, 48)}, "must be a PIL image or a tensor"),
        ({"image": torch.full((3, 32, 48), 255.0)}, "must be in 0..1"),
        ({"image": Image.new("RGB", (1, 1))}, "1x1 pixels"),
        ({"image": Image.new("RGB", (20000, 10))}, "20000x10 pixels"),
        ({"mask": torch.zeros(32, 48)}, "mask is empty"),
        ({"mask": torch.ones(32, 32)}, r"must be \[32,48\]"),
        ({"mask": torch.full((32, 48), torch.nan)}, "mask has values that are no numbers"),
        ({"mask": Image.new("L", (48, 48), 255)}, "mask is 48x48 pixels and the image 48x32"),
        ({"mask": Image.new("RGBA", (48, 32))}, "mask is empty"),
        ({"mask": [[1, 0]]}, "mask is list; it must be a PIL image or a tensor"),
        ({"config": CDSGuidanceConfig(patch_sizes=(64,))}, "patch_sizes has 64"),
        ({"timesteps": torch.tensor([3])}, "timesteps has 1 entries for 2 steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_is_named(diffusion: LatentDiffusion, images: Tensor, arguments: dict, message: str) -> None:
    valid = {"image": images[0], "source_prompt": "a cat", "target_prompt": "a pig", "steps": 2, "progress": False}
    with pytest.raises(UserError, match=message):
        edit_image(diffusion=diffusion, **{**valid, **arguments})


def test_pil_pixels_outside_the_mask_are_the_input_s(diffusion: LatentDiffusion) -> None:
    image = Image.merge("RGB", [Image.effect_noise((64, 64), 90) for _ in range(3)])
    mask = Image.new("L", image.size)
    mask.paste(255, (20, 20, 50, 64))
    result = edit_image(image, "a cat", "a pig", diffusion, steps=1, mask=mask, progress=False)
    black = Image.new("RGB", image.size)
    assert isinstance(result.image, Image.Image)
    assert Image.composite(black, result.image, mask).tobytes() == Image.composite(black, image, mask).tobytes()
