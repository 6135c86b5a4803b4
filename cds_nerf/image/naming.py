"""What edits are called."""

from __future__ import annotations

import re
from pathlib import Path

SLUG_LENGTH = 60
"""Letters of a prompt that go into a file's name, at most."""
STEM_BYTES = 200
"""Bytes that an image's and a prompt's part of a file's name have together, at most: file systems take 255, and a
number, an ending and the temporary name of `whole_file` come to these."""


def edit_name(image: Path, prompt: str) -> str:
    """What an edit is called, IMAGE-PROMPT, cut to what a file's name may have."""
    part = _shortened(slug(prompt), STEM_BYTES // 2)
    return f"{_shortened(image.stem, STEM_BYTES - len(part.encode()))}-{part}"


def _shortened(name: str, length: int) -> str:
    """As much of a name as fits into so many bytes."""
    return name.encode(errors="surrogateescape")[:length].decode(errors="ignore")


def slug(prompt: str) -> str:
    """A prompt as a part of a file's name."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:SLUG_LENGTH].rstrip("-") or "edit"
