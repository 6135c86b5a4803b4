"""What saves memory gives the same edit, and keeps less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from tiny_stable_diffusion import make_pipeline
from tiny_stable_diffusion_xl import make_xl_pipeline
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, edit_image
from cds_nerf.diffusion.memory import checkpoint_gradients, offload_to_cpu, slice_vae, tile_vae

pytestmark = pytest.mark.usefixtures("float64_by_default")
MAKERS: dict[str, Callable[[], Any]] = {"SD": make_pipeline, "SDXL": make_xl_pipeline}


def make_diffusion(family: str = "SD", dtype: torch.dtype = torch.float64) -> LatentDiffusion:
    pipeline = MAKERS[family]().to(dtype)
    names = ("unet", "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return LatentDiffusion(**{name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)})


def image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def edited(diffusion: LatentDiffusion, size: tuple[int, int] = (32, 48)) -> Tensor:
    return edit_image(image(2, 3, *size), "a cat", "a pig", diffusion, steps=2, progress=False).image


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize(
    "save",
    [checkpoint_gradients, slice_vae, lambda diffusion: offload_to_cpu(diffusion, torch.device("cpu"))],
    ids=["gradient checkpointing", "VAE slicing", "CPU offload"],
)
def test_the_edit_is_the_same(family: str, save: Callable[[LatentDiffusion], None]) -> None:
    saving = make_diffusion(family)
    save(saving)
    torch.testing.assert_close(edited(saving), edited(make_diffusion(family)))


def test_tiles_give_nearly_the_same_image() -> None:
    whole, tiled = make_diffusion(), make_diffusion()
    tile_vae(tiled)
    latents = whole.encode(image(1, 3, 128, 128))
    images = torch.stack([whole.decode(latents), tiled.decode(latents)])
    assert torch.corrcoef(images.flatten(1))[0, 1] > 0.5  # a random VAE sees a tile's borders more than a trained one
    assert not torch.equal(*images)


def saved_bytes(compute: Callable[[], Any]) -> int:
    """What autograd keeps for the backward pass, each storage counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(kept.values())


def test_gradient_checkpointing_keeps_less_for_the_guidance_s_gradient() -> None:
    def step(diffusion: LatentDiffusion) -> None:
        latents = torch.zeros(1, 4, 16, 16, dtype=torch.float64, requires_grad=True)
        texts = [diffusion.encode_prompt(prompt) for prompt in ("a cat", "a pig")]
        CDSGuidance(CDSGuidanceConfig(), diffusion)(latents.detach(), latents, *texts, torch.tensor([500]))

    saving, plain = make_diffusion(), make_diffusion()
    checkpoint_gradients(saving)
    assert saved_bytes(lambda: step(saving)) < 0.6 * saved_bytes(lambda: step(plain))


def test_gradient_checkpointing_keeps_less_for_a_gradient_through_the_vae() -> None:
    def gradient(diffusion: LatentDiffusion) -> Tensor:
        pixels = image(1, 3, 64, 64).requires_grad_()
        diffusion.encode(pixels).square().sum().backward()
        assert pixels.grad is not None
        return pixels.grad

    saving, plain = make_diffusion(), make_diffusion()
    checkpoint_gradients(saving)
    torch.testing.assert_close(gradient(saving), gradient(plain))
    assert saved_bytes(lambda: gradient(saving)) < 0.6 * saved_bytes(lambda: gradient(plain))


def test_tiles_keep_less_for_a_gradient_through_the_vae() -> None:
    saving, plain = make_diffusion(), make_diffusion()
    tile_vae(saving)
    pixels = image(1, 3, 128, 128).requires_grad_()
    assert saved_bytes(lambda: saving.encode(pixels)) < 0.6 * saved_bytes(lambda: plain.encode(pixels))


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[LatentDiffusion], set[str]]:
    """The names of the parts that are on the device: here it is the CPU as well, but called otherwise."""
    there: dict[int, bool] = {}
    to = torch.nn.Module.to

    def spy(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        there[id(module)] = args[0] == torch.device("cpu", 0)
        return to(module, *args, **kwargs)

    for kind in (torch.nn.Module, ModelMixin, PreTrainedModel):
        monkeypatch.setattr(kind, "to", spy)
    names = ("text_encoder", "text_encoder_2", "unet", "vae")
    return lambda diffusion: {name for name in names if there.get(id(getattr(diffusion, name)))}


def test_offloading_leaves_the_part_that_runs_alone_on_the_device(on_device) -> None:
    diffusion = make_diffusion("SDXL")
    offload_to_cpu(diffusion, torch.device("cpu", 0))
    assert on_device(diffusion) == set()
    text = diffusion.encode_prompt("a cat")
    assert on_device(diffusion) == {"text_encoder_2"}
    latents = diffusion.encode(image(1, 3, 32, 32))
    assert on_device(diffusion) == {"vae"}
    CDSGuidance(CDSGuidanceConfig(), diffusion)(latents, latents, text, text, torch.tensor([500]))
    assert on_device(diffusion) == {"unet"}
    diffusion.decode(latents)
    assert on_device(diffusion) == {"vae"}


def test_gradients_reach_an_image_through_an_offloaded_vae_that_is_encoded_under_checkpoint(on_device) -> None:
    def gradient(diffusion: LatentDiffusion, seen: list[set[str]]) -> Tensor:
        texts = [diffusion.encode_prompt(prompt) for prompt in ("a cat", "a pig")]
        assert diffusion.vae is not None
        diffusion.vae.encoder.conv_in.register_full_backward_hook(lambda *_: seen.append(on_device(diffusion)))
        pixels = image(1, 3, 32, 32).requires_grad_()
        latents = checkpoint(diffusion.encode, pixels, use_reentrant=False)
        CDSGuidance(CDSGuidanceConfig(), diffusion)(
            latents.detach() * 0, latents, *texts, torch.tensor([500]), torch.ones_like(latents)
        ).loss.backward()
        assert pixels.grad is not None
        return pixels.grad

    offloaded, seen = make_diffusion(), []
    offload_to_cpu(offloaded, torch.device("cpu", 0))
    torch.testing.assert_close(gradient(offloaded, seen), gradient(make_diffusion(), []))
    assert seen == [{"vae"}]


def test_an_offloaded_model_s_device_is_where_it_runs() -> None:
    diffusion = make_diffusion()
    offload_to_cpu(diffusion, torch.device("meta"))
    assert diffusion.unet.device.type == "cpu"
    assert diffusion.device.type == "meta"
