"""Where a run computes unless the user says otherwise."""

from typing import Literal

import torch


def default_device() -> Literal["cuda", "mps", "cpu"]:
    """The best kind of device that torch finds; nerfstudio's own default is always "cuda"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
