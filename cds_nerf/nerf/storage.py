"""A disk that is full or cannot be written, by the library that found out."""

from __future__ import annotations

import errno

from safetensors import SafetensorError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What a write ends with that is no mistake of the program's."""


def write_failure(error: BaseException) -> str | None:
    """What an exception says of the disk; None if it is about something else.

    torch and safetensors have their own exceptions for a write that failed, which tell it in words.
    """
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return str(error)
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, SafetensorError) and "os error" in text:
        return text
    if isinstance(error, RuntimeError) and "PytorchStreamWriter failed writing" in text:
        return "the checkpoint cannot be written, most likely because the disk is full"
    return None
