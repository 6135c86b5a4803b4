"""Self-attention features: which they are, and that taking them leaves the UNet and autograd as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from plain_cds import explicit_attention, plain_cds, relative_difference
from torch import Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.diffusion.self_attention import self_attention_features, self_attention_layers
from cds_nerf.errors import UserError

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def make_unet(
    down: tuple[str, ...] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up: tuple[str, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    **settings: Any,
) -> UNet2DConditionModel:
    """A UNet of three scales, the last up block of which has no attention."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        **settings,
    )


def inputs(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    source, change, noise = (torch.randn(batch, 4, 12, 20, generator=generator) for _ in range(3))
    embeddings = [torch.randn(1, 5, 12, generator=generator) for _ in range(3)]
    return {
        "source_latents": source,
        "target_latents": (source + change).requires_grad_(),
        "source_text": TextEmbedding(embeddings[1], embeddings[0]),
        "target_text": TextEmbedding(embeddings[2], embeddings[0]),
        "timestep": torch.tensor([100, 600])[:batch],
        "noise": noise,
    }


def cut_gradient(unet: UNet2DConditionModel, loss: Callable[..., Any] | None = None, **settings: Any) -> Tensor:
    """The contrastive gradient of the shipped guidance, or of the plain one."""
    diffusion, config, arguments = LatentDiffusion(unet, SCHEDULER), CDSGuidanceConfig(**settings), inputs()
    if loss is None:
        cut_loss = CDSGuidance(config, diffusion)(**arguments).cut_loss
    else:
        *_, cut_loss = loss(config, diffusion, **arguments)
    return torch.autograd.grad(cut_loss, arguments["target_latents"])[0]


def test_features_are_the_self_attentions_outputs_from_coarse_to_fine() -> None:
    unet, arguments = make_unet(transformer_layers_per_block=2).eval(), inputs()
    call = (arguments["source_latents"], arguments["timestep"], arguments["source_text"].conditional.expand(2, -1, -1))
    with torch.no_grad(), self_attention_features(unet) as features:
        unet(*call)
    with torch.no_grad(), explicit_attention(unet) as plain:
        unet(*call)
    assert len(features) == len(plain) == len(self_attention_layers(unet)) == 8
    assert [feature.shape[2:] for feature in features] == [(3, 5)] * 4 + [(6, 10)] * 4
    assert [layer.downsampling for layer in self_attention_layers(unet)] == [4] * 4 + [2] * 4
    for feature, expected in zip(features, plain, strict=True):
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_rows_keeps_those_samples_only() -> None:
    unet, arguments = make_unet().eval(), inputs()
    call = (arguments["source_latents"], arguments["timestep"], arguments["source_text"].conditional.expand(2, -1, -1))
    with torch.no_grad(), self_attention_features(unet) as every:
        unet(*call)
    with torch.no_grad(), self_attention_features(unet, slice(1, 2)) as second:
        unet(*call)
    assert all(torch.equal(feature[1:], one) for feature, one in zip(every, second, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "down": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        },
        {"up": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
        {"transformer_layers_per_block": 2, "use_linear_projection": True},
        {"only_cross_attention": (False, True, False)},
    ],
    ids=["no attention at the end", "as Stable Diffusion", "in the middle only", "two layers", "some cross only"],
)
def test_gradient_is_right_wherever_the_attentions_are(settings: dict[str, Any]) -> None:
    unet = make_unet(**settings)
    assert relative_difference(cut_gradient(unet), cut_gradient(unet, plain_cds)) < 5e-5


def test_a_checkpointed_unet_gives_the_same_gradient_from_less_memory() -> None:
    unet = make_unet()
    saved: list[int] = []
    gradients, counts = [], []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
            gradients.append(cut_gradient(unet))
        counts.append(sum(saved))
    assert torch.equal(*gradients)
    assert counts[1] < counts[0]


@pytest.mark.parametrize("enabled", [True, False], ids=["grad on", "grad off"])
def test_hooks_are_gone_and_the_grad_mode_is_back_afterwards(enabled: bool) -> None:
    unet, arguments = make_unet().eval(), inputs()
    embedding = arguments["source_text"].conditional.expand(2, -1, -1)
    with torch.set_grad_enabled(enabled):
        with self_attention_features(unet):
            unet(arguments["source_latents"], arguments["timestep"], embedding)
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(RuntimeError), self_attention_features(unet):
            unet(arguments["source_latents"], arguments["timestep"], embedding[:, :, :3])
        assert torch.is_grad_enabled() is enabled
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_a_unet_without_self_attention_in_the_up_blocks_says_so_and_does_for_plain_dds() -> None:
    diffusion = LatentDiffusion(make_unet(up=("UpBlock2D",) * 3), SCHEDULER)
    with pytest.raises(UserError, match=r"\(UpBlock2D, UpBlock2D, UpBlock2D\) have no self-attention.*w_cut=0"):
        CDSGuidance(CDSGuidanceConfig(), diffusion)
    arguments = inputs()
    CDSGuidance(CDSGuidanceConfig(w_cut=0), diffusion)(**arguments).loss.backward()
    assert arguments["target_latents"].grad.abs().sum() > 0


class TestChosenLayers:
    """The UNet has self-attentions 0 and 1 at a quarter of the latents' resolution, 2 and 3 at a half."""

    @pytest.mark.parametrize(
        ("settings", "layers"),
        [
            ({"contrastive_layers": (1, 2)}, (1, 2)),
            ({"contrastive_layers": (0,)}, (0,)),
            ({"contrastive_resolutions": (2,)}, (2, 3)),
            ({"contrastive_resolutions": (4,), "contrastive_layers": (1, 2)}, (1,)),
            ({"contrastive_resolutions": (2, 4)}, (0, 1, 2, 3)),
        ],
    )
    def test_they_alone_take_part(self, settings: dict[str, Any], layers: tuple[int, ...]) -> None:
        unet = make_unet()
        expected = cut_gradient(unet, plain_cds, contrastive_layers=layers)
        assert relative_difference(cut_gradient(unet, **settings), expected) < 5e-5

    def test_after_the_last_of_them_no_graph_is_recorded(self) -> None:
        saved: list[int] = []
        counts = []
        for layers in ((), (0,)):
            saved.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
                cut_gradient(make_unet(), contrastive_layers=layers)
            counts.append(sum(saved))
        assert counts[1] < 0.9 * counts[0]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"contrastive_layers": (0, 4)}, "contrastive_layers has 4, but .* have self-attentions 0 to 3"),
            (
                {"contrastive_resolutions": (1,)},
                "contrastive_resolutions has 1, but .* smaller than the latents by 2, 4",
            ),
            (
                {"contrastive_layers": (0,), "contrastive_resolutions": (2,)},
                r"have no layer in common; layers and their resolutions are 0 \(4\), 1 \(4\), 2 \(2\), 3 \(2\)",
            ),
        ],
    )
    def test_those_that_there_are_not_are_named(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            CDSGuidance(CDSGuidanceConfig(**settings), LatentDiffusion(make_unet(), SCHEDULER))
