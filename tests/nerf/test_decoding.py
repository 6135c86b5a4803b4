"""Edits in which a view is drawn to the picture of its latents one step further."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_edit import edit_config_for, load_checkpoint, run
from test_edit import assert_equal_states, interrupt_at
from test_mistakes import message_of

from cds_nerf.errors import Interrupted
from cds_nerf.nerf.decoding import decoded_loss
from cds_nerf.nerf.memory_advice import where_memory_ran_out
from cds_nerf.seeding import seed_for

LATENT_PIXELS = 4


def decode(latents: torch.Tensor) -> torch.Tensor:
    """Three of the channels, each latent as a square."""
    return 0.5 + 0.1 * latents[:, :3].repeat_interleave(LATENT_PIXELS, 2).repeat_interleave(LATENT_PIXELS, 3)


@pytest.fixture
def drawn() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    latents, gradient = torch.randn(2, 1, 4, 3, 5, generator=draw)
    return {"latents": latents, "gradient": gradient, "image": torch.rand(3, 12, 20, generator=draw)}


def gradient_of_image(relevance: torch.Tensor | None, drawn: dict[str, torch.Tensor], step: float) -> torch.Tensor:
    image = drawn["image"].clone().requires_grad_()
    decoded_loss(relevance, image, drawn["latents"], drawn["gradient"], decode, step).backward()
    assert image.grad is not None
    return image.grad


def test_view_is_drawn_to_the_decoded_step(drawn):
    target = decode(drawn["latents"] - 0.7 * 15 / 2000 * drawn["gradient"])[0]
    expected = 2 * 2000 / 15 * (drawn["image"] - target)
    torch.testing.assert_close(gradient_of_image(None, drawn, step=0.7), expected)


def test_view_that_its_latents_show_exactly_follows_them(drawn):
    drawn["image"] = decode(drawn["latents"])[0]
    expected = decode(drawn["latents"] - drawn["gradient"])[0] - drawn["image"]
    descent = -gradient_of_image(None, drawn, step=2000 / 15)
    torch.testing.assert_close(descent, 2 * 2000 / 15 * expected, atol=1e-4, rtol=1e-4)


def test_nothing_outside_of_the_region_is_pulled_or_stepped(drawn):
    relevance = torch.zeros(1, 12, 20)
    relevance[:, :, :10] = 1  # two and a half latents
    gradient = gradient_of_image(relevance, drawn, step=1.0)
    assert gradient[..., :10].abs().min() > 0 and not gradient[..., 10:].any()
    drawn["gradient"][..., 3:] = 1e6
    assert torch.equal(gradient_of_image(relevance, drawn, step=1.0), gradient)


@pytest.fixture(params=["source_run", "splat_run"])
def edit_through_decoder(request, diffusion_folder, tmp_path):
    def make(**typed: Any) -> Any:
        settings = {"pipeline__guided_through": "decoder", "max_num_iterations": 3} | typed
        return edit_config_for(
            request.getfixturevalue(request.param), diffusion_folder, tmp_path / "outputs", **settings
        )

    return make


@pytest.mark.field
def test_field_follows_the_guidance_through_the_decoder(edit_through_decoder):
    """Against the formula in plain words, with the guidance's own loss taken back to the latents."""
    pipeline = run(edit_through_decoder(max_num_iterations=1, pipeline__draws_per_view=2)).pipeline
    guidance, diffusion = pipeline.guidance, pipeline.guidance.diffusion
    pipeline.zero_grad()
    losses, metrics = pipeline._losses_of_view(1, 1)
    assert {"dds_loss", "decoded_loss"} <= losses.keys() and not losses["dds_loss"].requires_grad

    index = int(metrics["view"])
    image, _ = pipeline.render_view(index, seed_for(pipeline.seed, "rendering", 1))
    relevance = pipeline.region.of_view(index, 1)
    with torch.no_grad():
        latents = diffusion.encode(image[None])
    leaf = latents.expand(2, -1, -1, -1).clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed_for(pipeline.seed, "guidance", 1))
    source = pipeline.source.latents(index, tuple(latents.shape[1:])).expand_as(leaf)
    texts = (pipeline.source_text, pipeline.target_text)
    guidance(source, leaf, *texts, generator=generator, step=1, steps=pipeline.steps).loss.backward()
    weights = torch.nn.functional.interpolate(relevance[None], latents.shape[-2:], mode="area")
    positions = latents[0, 0].numel()
    mean = leaf.grad.mean(dim=0, keepdim=True)
    target = diffusion.decode(latents - 0.8 * positions / 2000 * weights * mean)[0]
    expected = 2000 / positions * (relevance * (image - target) ** 2).sum()
    assert losses["decoded_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.field
def test_resumed_edit_through_the_decoder_equals_uninterrupted(edit_through_decoder, monkeypatch):
    whole = edit_through_decoder(timestamp="whole")
    run(whole)
    broken = edit_through_decoder(timestamp="broken", steps_per_save=1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 2)
        run(broken)
    run(
        edit_through_decoder(
            pipeline__resume_from=broken.get_base_dir(), pipeline__guided_through=None, max_num_iterations=None
        )
    )
    assert_equal_states(load_checkpoint(broken.get_base_dir()), load_checkpoint(whole.get_base_dir()))


@pytest.mark.field
def test_what_the_other_way_alone_uses_is_refused(edit_config):
    assert message_of(edit_config(pipeline__latent_step=0.5)).startswith("--pipeline.latent-step is 0.5, which does n")
    typed = {"pipeline__guided_through": "decoder", "pipeline__encoder_checkpointing": True}
    assert message_of(edit_config(**typed)).startswith("--pipeline.encoder-checkpointing is True, which does nothing ")


@pytest.mark.field
def test_what_the_other_way_alone_uses_is_refused_where_it_is_the_default(edit_config):
    config = edit_config(pipeline__latent_step=0.8)
    config.typed = ["pipeline.latent_step"]
    assert message_of(config).startswith("--pipeline.latent-step is 0.8, which does nothing without ")
    config = edit_config(
        pipeline__guided_through="decoder",
        pipeline__encoder_checkpointing=False,
        pipeline__diffusion_model__cpu_offload=True,
    )
    config.typed = ["pipeline.encoder_checkpointing"]
    assert message_of(config).startswith("--pipeline.encoder-checkpointing is False, which does nothing with ")


@pytest.mark.field
def test_too_little_memory_is_not_answered_with_what_the_decoder_does_not_use(edit_config, tmp_path):
    through_encoder, through_decoder = (
        where_memory_ran_out(edit_config(pipeline__guided_through=way), tmp_path, steps=0)
        for way in ("encoder", "decoder")
    )
    assert "--pipeline.encoder-checkpointing True, " in through_encoder
    assert through_decoder == through_encoder.replace("--pipeline.encoder-checkpointing True, ", "")
