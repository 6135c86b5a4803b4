"""The Hugging Face Hub, asked so that a machine without it learns that at once."""

from __future__ import annotations

from huggingface_hub import model_info
from huggingface_hub.hf_api import ModelInfo

TIMEOUT = 10.0
"""Seconds in which it has to answer."""


def ask_hub(model: str) -> ModelInfo:
    """What the hub knows of a model.

    Args:
        model: OWNER/NAME.

    Raises:
        Exception: of the hub's client or of its HTTP library, which differs by version, if there is no answer or no
            such model.
    """
    return model_info(model, timeout=TIMEOUT)
