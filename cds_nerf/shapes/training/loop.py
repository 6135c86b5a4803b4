"""The training loop of every stage: data-parallel on a CPU's cores, seeded, resumable, with a log."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cds_nerf.progress import progress_bar

EMA_DECAY = 0.999
"""Of the average of the weights that a stage ends with."""
WARM_UP_STEPS = 100
"""Over which the learning rate rises."""
SECONDS_PER_SAVE = 120
"""Between states that an interrupted stage goes on from."""
STEPS_PER_LOG = 50
"""Between lines of the log."""


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together, each on one thread."""

    rank: int
    """Its number; number 0 writes files and shows progress."""
    count: int
    """How many there are."""
    folder: Path
    """Where stages keep their states and results."""
    seed: int
    """Of everything."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def generator(self, stage: str, step: int) -> Generator:
        """Random numbers that depend on the seed, the stage, the step and the worker alone."""
        # Hashed, because a CPU's generator looks at a seed's last 32 bits alone.
        digest = hashlib.sha256(f"{self.seed}/{stage}/{step}/{self.rank}".encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def train(
    worker: Worker,
    name: str,
    objective: nn.Module,
    batch: Callable[[int, Generator], tuple[Tensor, ...]],
    steps: int,
    learning_rate: float,
) -> None:
    """Train all parameters of an objective with AdamW under a cosine schedule; they end as their moving average.

    A finished stage is loaded rather than trained; an interrupted one goes on from its last state.

    Args:
        worker: this process.
        name: of the stage, for its files.
        objective: a module whose forward takes a batch and gives the losses by name; their sum is minimised.
        batch: makes this worker's batch of a step, with a generator for all that is random.
        steps: how many.
        learning_rate: at its greatest.
    """
    result, state, log = (worker.folder / f"{name}.{kind}" for kind in ("safetensors", "state", "log.jsonl"))
    if result.exists():
        objective.load_state_dict(load_file(result))
        return
    average = {key: value.clone() for key, value in objective.state_dict().items()}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    start = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        objective.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start = saved["average"], saved["step"]
    parallel = DistributedDataParallel(objective) if worker.count > 1 else objective
    # Older versions of torch have no such question.
    half_precision = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    saved_at = time.monotonic()
    bar = progress_bar(description=name, total=steps, initial=start, shown=worker.is_first)
    for step in range(start, steps):
        rate = min(1, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        inputs = batch(step, worker.generator(name, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
            losses = parallel(*inputs)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in objective.state_dict().items():
                average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)
        bar.update()
        if worker.is_first and step % STEPS_PER_LOG == 0:
            values = {key: round(value.item(), 5) for key, value in losses.items()}
            bar.set_postfix(values)
            with log.open("a") as file:
                file.write(json.dumps({"step": step, "seconds": round(time.time()), **values}) + "\n")
        if worker.is_first and time.monotonic() - saved_at > SECONDS_PER_SAVE:
            saved_at = time.monotonic()
            entries = {"weights": objective.state_dict(), "average": average, "step": step + 1}
            torch.save({**entries, "optimizer": optimizer.state_dict()}, state.with_suffix(".partial"))
            state.with_suffix(".partial").replace(state)
    bar.close()
    objective.load_state_dict(average)
    if worker.is_first:
        save_file(average, result.with_suffix(".partial"))
        os.replace(result.with_suffix(".partial"), result)
        state.unlink(missing_ok=True)
    if worker.count > 1:
        dist.barrier()
