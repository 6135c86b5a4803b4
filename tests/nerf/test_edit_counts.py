"""What `benchmarks/step_cost.py` counts is what an edit does."""

from __future__ import annotations

import torch
from device_waits import DeviceWaits
from edit_counts import (
    BYTES,
    DECODE,
    ENCODE,
    ENCODE_AGAIN,
    FILES,
    GAUSSIANS,
    RAYS,
    RAYS_AGAIN,
    READS,
    SENDS,
    UNET,
    EditCounts,
)
from small_edit import VIEWS, edit_config_for, run
from torch.utils.checkpoint import checkpoint

WIDTH, HEIGHT = 28, 16
"""Of the small edits' views."""
RELEVANCE, GUIDANCE = 6, 4
"""UNet samples of a relevance map, and of a draw of CDS, as their docstrings say."""


def counted(config) -> EditCounts:
    counts = EditCounts()
    with counts.watching():
        run(config)
    return counts


def test_step_is_counted_as_the_docstrings_say(edit_config):
    counts = counted(
        edit_config(
            pipeline__draws_per_view=3,
            pipeline__views_per_step=2,
            pipeline__rays_per_chunk=WIDTH * HEIGHT // 2,
            pipeline__encoder_checkpointing=True,
        )
    )
    assert len(counts.steps) == 3
    step = counts.steps[1]
    assert step.counts["score"][UNET] == step.total(UNET) == 2 * 3 * GUIDANCE
    assert step.counts["encode"][ENCODE] == 2 and step.counts["render"][RAYS] == 2 * WIDTH * HEIGHT
    # Of several chunks of rays, each is rendered again on the way back; one alone would not be.
    assert step.counts["backward"][RAYS] == step.total(RAYS_AGAIN) == 2 * WIDTH * HEIGHT
    assert step.counts["backward"][ENCODE] == step.total(ENCODE_AGAIN) == 2
    assert step.total(DECODE) == step.total(GAUSSIANS) == 0
    assert set(step.seconds) >= {"render", "encode", "score", "backward", "optimiser"}


def test_what_comes_before_and_after_the_steps_is_counted_apart(edit_config):
    counts = counted(edit_config(pipeline__orbit_frames=0))
    assert counts.before.total(UNET) == GUIDANCE + RELEVANCE * VIEWS
    assert counts.before.total(ENCODE) == VIEWS
    assert counts.before.counts["source view"][RAYS] == VIEWS * WIDTH * HEIGHT
    assert counts.before.total(FILES) > VIEWS and counts.before.total(BYTES) > 0
    assert counts.after.counts["result"][RAYS] == VIEWS * WIDTH * HEIGHT
    assert counts.after.counts["strip"][UNET] == GUIDANCE


def test_gaussians_are_counted_by_pixels(splat_run, diffusion_folder, tmp_path):
    counts = counted(edit_config_for(splat_run, diffusion_folder, tmp_path / "outputs"))
    drawn = counts.steps[1].counts["render"][GAUSSIANS]
    assert drawn > 0 and drawn % (WIDTH * HEIGHT) == 0
    assert counts.steps[1].total(RAYS) == 0


def test_waits_are_reads_of_what_is_on_the_device_and_blocking_sends():
    seen: list[str] = []
    waits = DeviceWaits(seen.append, packages=(__name__,))
    weight = torch.ones(4, 4, requires_grad=True)
    waits.place([weight])
    with waits:
        drawn = torch.randn(3, 4)
        assert float(drawn.sum()) < 100 and drawn[drawn > 0].tolist() and drawn.cpu().numpy().size
        elsewhere = drawn.to(torch.device("cpu"))
        assert elsewhere.sum().item() < 100
        assert seen == []  # all of it on the host as far as anybody knows

        sent = drawn.to(torch.device("cpu"))
        product = checkpoint(lambda: sent @ weight, use_reentrant=False) + sent @ weight
        assert seen == [SENDS]
        drawn.to(torch.device("cpu"), non_blocking=True) @ weight
        drawn.to(torch.float64)
        assert seen == [SENDS]
        product.sum().backward()
        assert seen == [SENDS]
        gradient = weight.grad
        assert gradient is not None
        gradient[gradient > 0]
        gradient.tolist()
        on_host = gradient.cpu()
        assert seen == [SENDS, READS, READS, READS]
        bool(on_host.sum() > 0)
        bool(gradient.sum() > 0)
        assert seen == [SENDS, *4 * [READS]]
        torch.tensor([1.0, 2.0, 3.0, 4.0], device="cpu") * gradient
        assert seen == [SENDS, *4 * [READS], SENDS]
    gradient.tolist()
    assert len(seen) == 6 and {kind for kind, _ in waits.places} == {READS, SENDS}
