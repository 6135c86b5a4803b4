"""What a step of an edit costs beside its arithmetic: waits for the device, and what is kept for the backward pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from edit_counts import ENCODE, EditCounts
from nerfstudio.field_components.encodings import HashEncoding
from small_edit import VIEWS, edit_config_for, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mistakes import message_of

from cds_nerf.nerf import compatibility, progress
from cds_nerf.nerf.encoding import encode_within


@pytest.mark.slow
@pytest.mark.parametrize("source", ["source_run", "splat_run"])
def test_step_waits_once_for_the_device_and_encodes_once(request, diffusion_folder, tmp_path, monkeypatch, source):
    """It reads whether all is finite, and nothing else until the losses are due to be shown.

    Not counted is what nerfstudio's cameras read, to find out whether they have distortion, and the rasteriser in plain
    torch, which a GPU does without.
    """
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 1000.0)
    settings = {"max_num_iterations": 5, "pipeline__orbit_frames": 0, "steps_per_save": 100}
    config = edit_config_for(request.getfixturevalue(source), diffusion_folder, tmp_path, **settings)
    counts = EditCounts()
    with counts.watching():
        run(config)
    reads = Counter[str]()
    for (kind, place), number in counts.places.items():
        if kind == "reads" and not place.startswith(("nerfstudio.cameras", "cds_nerf.fields")):
            reads[place.partition(":")[0].rpartition(".")[2]] += number
    assert reads.pop("step_checks") == 5
    assert reads.pop("progress") == 1
    assert reads.pop("region", 0) <= 2 * (
        VIEWS + 1
    )  # the size of each view's camera, which is on the host beside a GPU
    in_the_strip = {"edit_renders", "gradient_picture", "loss_record", "loss"}
    assert reads.keys() <= in_the_strip and reads.total() < 10, reads  # of which there is one
    _, *steps, _ = counts.steps  # the first has the strip
    assert [tally.counts["encode"][ENCODE] for tally in steps] == [1, 1, 1]
    assert not any(tally.counts["backward"][ENCODE] for tally in steps if "backward" in tally.counts)
    events = EventAccumulator(str(config.get_base_dir())).Reload()
    assert [event.step for event in events.Scalars("Train Loss Dict/dds_loss")] == [0, 1, 2, 3, 4]


def test_losses_are_shown_as_often_as_they_are_due_and_at_the_end(edit_config, monkeypatch, capsys):
    looks = []
    show = progress.ProgressTrainer._show_losses
    monkeypatch.setattr(progress.ProgressTrainer, "_show_losses", lambda self: (looks.append(None), show(self)))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 1000.0)
    run(edit_config(max_num_iterations=4))
    assert len(looks) == 2  # of the first and the last
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.0)
    capsys.readouterr()
    run(edit_config(timestamp="often", max_num_iterations=4))
    assert len(looks) == 2 + 4 + 1
    assert "dds=" in capsys.readouterr().err


def test_encoder_whose_activations_are_not_kept_has_the_same_gradient(edit_config):
    pipeline = run(edit_config(max_num_iterations=1)).pipeline
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    relevance = torch.ones(1, 64, 64)

    def kept_bytes_and_gradient(checkpointing: bool) -> tuple[int, torch.Tensor]:
        pipeline.config.encoder_checkpointing = checkpointing
        kept: dict[int, torch.Tensor] = {}
        weights = {weight.untyped_storage().data_ptr() for weight in pipeline.guidance.diffusion.vae.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        leaf = image.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            latents = encode_within(relevance, leaf, pipeline.guidance.diffusion.encode, pipeline.config.encodes_twice)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        latents.square().sum().backward()
        assert leaf.grad is not None
        return total, leaf.grad

    once, gradient = kept_bytes_and_gradient(False)
    twice, same = kept_bytes_and_gradient(True)
    assert torch.equal(gradient, same)
    assert twice < once / 10


def test_encoder_that_has_gone_cannot_be_told_to_stay(edit_config):
    typed: dict[str, Any] = {
        "pipeline__encoder_checkpointing": False,
        "pipeline__diffusion_model__cpu_offload": True,
    }
    assert message_of(edit_config(**typed)).startswith("--pipeline.encoder-checkpointing is False; with ")


def test_hash_encoding_is_the_same_with_its_constants_on_the_device():
    encoding = HashEncoding(num_levels=4, log2_hashmap_size=10, implementation="torch")
    places = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    before = encoding(places)
    compatibility.keep_constants_of_encodings_on_device(encoding)
    assert torch.equal(encoding(places), before)
    copy = compatibility.copy_of(encoding)
    copy.hash_table.data.zero_()
    copy.primes.zero_()
    assert torch.equal(encoding(places), before) and not copy(places).any()
