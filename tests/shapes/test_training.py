"""The prior's training, on less of everything."""

import random
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor, nn

from cds_nerf import LatentDiffusion
from cds_nerf.shapes import train_prior
from cds_nerf.shapes.classifier import AttributeClassifier
from cds_nerf.shapes.scene import ATTRIBUTES, FILLER, Scene, all_scenes
from cds_nerf.shapes.train_prior import TrainPrior
from cds_nerf.shapes.training import autoencoder_stage, classifier_stage, denoiser_stage, loop
from cds_nerf.shapes.training.autoencoder_stage import new_autoencoder, normalise_latents
from cds_nerf.shapes.training.denoiser_stage import CAPTION_SHARES, TOKENS, make_tokenizer, tokenize, wordings
from cds_nerf.shapes.training.loop import Worker, train
from cds_nerf.shapes.training.renders import random_renders, random_view


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"error": (self.layer(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()}


def regression(worker: Worker, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    objective = Regression()

    def batch(step: int, generator: Generator) -> tuple[Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        return (torch.randn((8, 3), generator=generator),)

    train(worker, "regression", objective, batch, steps=60, learning_rate=0.1)
    return objective


def test_interrupted_training_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SECONDS_PER_SAVE", 0)
    for name in ("whole", "interrupted"):
        (tmp_path / name).mkdir()
    whole = regression(Worker(0, 1, tmp_path / "whole", seed=0))
    interrupted = Worker(0, 1, tmp_path / "interrupted", seed=0)
    with pytest.raises(KeyboardInterrupt):
        regression(interrupted, stop_at=37)
    resumed = regression(interrupted)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    assert not torch.allclose(whole.layer.weight, Regression().layer.weight)


def test_finished_training_is_not_done_again(tmp_path: Path) -> None:
    worker = Worker(0, 1, tmp_path, seed=0)
    first = regression(worker)
    again = regression(worker, stop_at=0)
    assert torch.equal(first.layer.weight, again.layer.weight)


def test_every_step_of_every_worker_draws_anew(tmp_path: Path) -> None:
    workers = [Worker(rank, 2, tmp_path, seed=0) for rank in range(2)]
    draws = {
        torch.randn(2, generator=worker.generator("denoiser", step)).sum().item()
        for worker in workers
        for step in range(2000)
    }
    assert len(draws) > 3990  # of 4000; floats may coincide


def test_each_word_of_the_world_is_one_token() -> None:
    tokenizer = make_tokenizer()
    words = [word for values in ATTRIBUTES.values() for word in values] + [*FILLER]
    assert [tokenizer.tokenize(word) for word in words] == [[f"{word}</w>"] for word in words]
    assert len({tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in words}) == len(words)
    for scene in all_scenes():
        assert len(tokenizer(scene.caption).input_ids) <= TOKENS


def test_captions_are_worded_in_many_ways() -> None:
    scene = next(all_scenes())
    assert scene.caption == wordings(scene)[0] and wordings(scene)[-1] == ""
    assert sum(CAPTION_SHARES.values()) == pytest.approx(1)
    assert tokenize(make_tokenizer(), wordings(scene)).shape == (len(CAPTION_SHARES), TOKENS)


def test_normalised_latents_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    vae = new_autoencoder().eval().requires_grad_(False)
    images = random_renders(8, seed=3, progress=False).images / 127.5 - 1
    before = vae.encode(images).latent_dist
    decoded = vae.decode(before.mean).sample
    normalise_latents(vae, images)
    after = vae.encode(images).latent_dist
    assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(after.mean.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-4)
    assert torch.allclose(vae.decode(after.mean).sample, decoded, atol=1e-4)
    deviation = before.mean.std(dim=(0, 2, 3))[:, None, None]
    assert torch.allclose(after.std * deviation, before.std, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_make_a_model_that_diffusers_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command but for the number of steps, which the processes take from this one by forking."""
    for module, steps in (
        (autoencoder_stage, ("CROP_STEPS", "WHOLE_STEPS")),
        (classifier_stage, ("STEPS",)),
        (denoiser_stage, ("STEPS",)),
    ):
        for name in steps:
            monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(train_prior.multiprocessing, "spawn", lambda work, args, nprocs: _fork(work, args, nprocs))
    TrainPrior(work=tmp_path, renders=84, processes=2).run()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "prior")
    images = pipeline("a red cube", num_inference_steps=1, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    diffusion = LatentDiffusion.from_pretrained(tmp_path / "prior")
    assert diffusion.native_size == 64 and diffusion.prediction_type == "v_prediction"
    AttributeClassifier.from_pretrained(tmp_path / "classifier.safetensors")
    assert (tmp_path / "denoiser.log.jsonl").read_text().count("\n") == 1


def _fork(work: object, args: tuple, nprocs: int) -> None:
    train_prior.multiprocessing.start_processes(work, args, nprocs=nprocs, start_method="fork")


def test_training_shows_scenes_with_detail_and_plain_ones() -> None:
    draw = random.Random(1)
    details = [random_view(Scene("red", "cube", "gray"), draw)[0].detail for _ in range(400)]
    assert 0.7 < sum(detail is not None for detail in details) / len(details) < 0.8
