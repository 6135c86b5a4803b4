"""Make the bundled prior and its judge from nothing: python -m cds_nerf.shapes.train_prior."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import tyro
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from cds_nerf.shapes.training.autoencoder_stage import encode_renders, train_autoencoder
from cds_nerf.shapes.training.classifier_stage import train_classifier
from cds_nerf.shapes.training.denoiser_stage import new_scheduler, train_denoiser, write_vocabulary
from cds_nerf.shapes.training.loop import Worker
from cds_nerf.shapes.training.renders import Renders, random_renders


@dataclass
class TrainPrior:
    """Train the bundled latent diffusion model and the classifier that judges it, on renders of the world of shapes.

    What is done stays in the work folder: an interrupted training goes on when it is started again.
    """

    work: Path = Path("outputs/prior")
    """Folder for renders, states, logs (*.log.jsonl), and the results: `prior` and `classifier.safetensors`."""
    renders: int = 32000
    """Training images."""
    seed: int = 0
    """Of everything."""
    processes: int = os.cpu_count() or 1
    """Processes that train together, one thread each; batches are shared among them."""

    def run(self) -> None:
        """Train every stage that is not done."""
        self.work.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29507")
        multiprocessing.spawn(_work, (self,), nprocs=self.processes)


def _work(rank: int, command: TrainPrior) -> None:
    torch.set_num_threads(1)
    worker = Worker(rank, command.processes, command.work, command.seed)
    if worker.count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=worker.count)
    shard = f"{rank}-of-{worker.count}.safetensors"

    def render() -> dict[str, Tensor]:
        renders = random_renders(command.renders // worker.count, worker.seed + rank, progress=worker.is_first)
        return {"images": renders.images, "words": renders.words}

    renders = Renders(**_made_once(worker.folder / f"renders-{shard}", render))
    vae = train_autoencoder(worker, renders)
    classifier = train_classifier(worker, renders)
    latents = _made_once(worker.folder / f"latents-{shard}", lambda: {"latents": encode_renders(vae, renders.images)})[
        "latents"
    ]
    unet, text_encoder, tokenizer = train_denoiser(worker, latents, renders.words)
    if worker.is_first:
        pipeline = StableDiffusionPipeline(
            vae, text_encoder, tokenizer, unet, new_scheduler(), None, None, requires_safety_checker=False
        )
        pipeline.to(torch.float16).save_pretrained(worker.folder / "prior")
        # transformers would open its part in the precision that it is kept in, diffusers opens the others in float32.
        config = worker.folder / "prior" / "text_encoder" / "config.json"
        config.write_text(config.read_text("utf8").replace('"dtype": "float16"', '"dtype": "float32"'), "utf8")
        # transformers 4 opens neither a tokenizer nor a text encoder that transformers 5 has written.
        write_vocabulary(worker.folder / "prior" / "tokenizer")
        weights = config.with_name("model.safetensors")
        prefixed = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in load_file(weights).items()}
        save_file(prefixed, weights, metadata={"format": "pt"})
        save_model(classifier.half(), str(worker.folder / "classifier.safetensors"))
        print(f"wrote {worker.folder / 'prior'} and {worker.folder / 'classifier.safetensors'}")


def _made_once(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file, which is made where it does not exist."""
    if not path.exists():
        save_file(make(), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return load_file(path)


if __name__ == "__main__":
    tyro.cli(TrainPrior, description=TrainPrior.__doc__).run()
