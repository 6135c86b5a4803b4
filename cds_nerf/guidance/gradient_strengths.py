"""How strong the gradients of score and contrastive loss are: what a relative contrastive weight is relative to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

MEMORY = 0.99
"""What counts of a step's gradients one step later; all that is remembered is worth about 100 steps, enough for every
level of noise to have its say."""


class GradientStrengths:
    """Decaying sums over an edit's steps of the norms of both gradients, for each item of the batch.

    The norms and their ratio change with every timestep and noise; the ratio of the sums is steady. Both sums forget
    alike, and so it is that of the means.
    """

    of_all: Callable[[list[list[float]]], list[list[list[float]]]] | None = None
    """Where several processes take a step together, each with a view of its own: gives the norms of all, in order."""
    rank = 0
    """Which of them this is. To its ratio the views before its own have been seen already, and those behind have not,
    as if one process took one after the other."""

    def __init__(self) -> None:
        self._sums: Float[Tensor, "2 batch"] | None = None
        self._others: list[Float[Tensor, "2 batch"]] = []

    def add(self, score: Float[Tensor, "batch channels h w"], contrastive: Float[Tensor, "batch channels h w"]) -> None:
        """Take the gradients of one more step; those of another batch size begin anew."""
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in (score, contrastive)])
        views = [norms] if self.of_all is None else [norms.new_tensor(view) for view in self.of_all(norms.tolist())]
        self._sums = self._with(*self._others, *views[: self.rank + 1])
        self._others = views[self.rank + 1 :]

    def _with(self, *views: Float[Tensor, "2 batch"]) -> Float[Tensor, "2 batch"] | None:
        """The sums after more views."""
        sums = self._sums
        for norms in views:
            if sums is None or sums.shape != norms.shape:
                sums = torch.zeros_like(norms)
            sums = MEMORY * sums.to(norms) + norms
        return sums

    def ratio(self, like: Float[Tensor, "batch channels h w"]) -> Float[Tensor, " batch"]:
        """How many times stronger the score's gradient is than the contrastive loss's; 0 where one of them is unknown.

        Args:
            like: latents of the batch, on the device and in the precision that are wanted.
        """
        if self._sums is None or self._sums.shape[1] != len(like):
            return like.new_zeros(len(like))
        score, contrastive = self._sums.to(like)
        return torch.where(contrastive > 0, score / contrastive, torch.zeros_like(score))

    def clear(self) -> None:
        """Forget all steps."""
        self._sums, self._others = None, []

    def state(self) -> list[list[float]] | None:
        """All that is remembered, for a file; None where that is nothing."""
        sums = self._with(*self._others)
        return None if sums is None else sums.tolist()

    def load(self, state: list[list[float]] | None) -> None:
        """Remember what `state` gave."""
        self._sums, self._others = None if state is None else torch.tensor(state), []
