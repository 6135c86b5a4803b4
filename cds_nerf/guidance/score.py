"""What a score is: a direction for target latents, from what a frozen prior says of them and of the source's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from cds_nerf.guidance.noisy_pair import NoisyPair


class Score(ABC):
    """The formula of a score, and the numbers of its paper, which hold where the user tells no others.

    `CDSGuidance` makes a loss of it: 2000 / (h w) times the sum of target latents times `gradient`, so that a learning
    rate means the same for every score. Subclasses say the formula alone: batches, precision, classifier-free guidance,
    SDXL's conditions, the draws of timestep and noise and the contrastive term are not theirs.
    """

    guidance_scale: float = 7.5
    """Classifier-free guidance scale."""
    w_cut: float = 0.0
    """Weight of the contrastive term beside the score."""
    min_timestep: float = 0.05
    """Least noise, as a fraction of the training timesteps."""
    max_timestep: float = 0.95
    """Most noise, as a fraction of the training timesteps."""
    term: str = ""
    """What the score is called in progress bars, plots and logs, with `_loss` behind it."""

    @abstractmethod
    def gradient(self, pair: NoisyPair) -> Float[Tensor, "batch channels h w"]:
        """The score g, which the target latents go against, item by item of the batch; any gradient of it is dropped.

        Args:
            pair: source and target latents with one timestep and noise, and the prior's noise predictions of them.
        """

    def timestep_grid(self, timesteps: int) -> range:
        """Of a prior's training timesteps 0..timesteps - 1 those that the score may be drawn at; by default all."""
        return range(timesteps)
