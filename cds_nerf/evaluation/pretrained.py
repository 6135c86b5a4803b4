"""Networks that judge pictures: from a folder, the local cache or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cds_nerf.errors import UserError, first_line
from cds_nerf.hub import ask_hub


def from_cache_or_hub(kind: Any, model: str) -> Any:
    """A pretrained network or tokenizer; the hub is asked only where the local cache has it not.

    Args:
        kind: its transformers class.
        model: a hub id or a folder; weights are read from safetensors alone.

    Raises:
        UserError: if it cannot be had.
    """
    is_folder = model.startswith(("/", ".", "~")) or Path(model).exists()
    weights = {"use_safetensors": True} if hasattr(kind, "parameters") else {}
    try:
        try:
            return kind.from_pretrained(model, local_files_only=True, **weights)
        except OSError:
            if is_folder:
                raise
            ask_hub(model)  # says at once what `from_pretrained` tries again and again for
            return kind.from_pretrained(model, **weights)
    except Exception as error:  # of transformers, the hub's client and its HTTP library, each its own
        where = "" if is_folder else " from the Hugging Face Hub"
        raise UserError(f"{model} cannot be had{where} ({first_line(error)})") from error
