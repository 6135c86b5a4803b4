"""Progress of long work: in a terminal a bar that moves, in a log file a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""How long a log file gets no line, at least, while the work goes on."""
LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}"
"""What a line of a log file says; the postfix is ", " and what `set_postfix` was given, or nothing."""


def progress_bar(
    iterable: Iterable[Any] | None = None,
    description: str = "",
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "step",
    shown: bool = True,
) -> tqdm:
    """A tqdm bar on stderr that suits where it goes.

    In a terminal or a notebook it moves. Elsewhere it is a line every half a minute and one at the end, so that a log
    file stays short.

    Args:
        iterable: what is counted, if it is not counted by `update`.
        description: what is being done.
        total: how many there are; by default the length of the iterable.
        initial: how many were done before.
        unit: what is counted, in the singular.
        shown: whether there is anything to see at all.
    """
    moves = sys.stderr.isatty() or "ipykernel" in sys.modules
    description = " ".join(description.split())  # a prompt may have several lines
    bar = tqdm if moves else LoggedProgress
    return bar(iterable, description, total, initial=initial, unit=unit, disable=not shown)


class LoggedProgress(tqdm):
    """tqdm whose every message is a line of its own; one at the end, and one now and then before."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.written_at = time.monotonic()
        self.written: float | None = None
        settings |= {"bar_format": LINE, "leave": False}
        super().__init__(*arguments, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if it is time for one; tqdm calls this whenever it would move the bar."""
        if time.monotonic() - self.written_at >= SECONDS_BETWEEN_LINES:
            self._write_line()

    def close(self) -> None:
        """End with a line that says how far it came."""
        if not self.disable and self.n != self.written:
            self._write_line()
        super().close()

    def _write_line(self) -> None:
        self.written_at, self.written = time.monotonic(), self.n
        self.fp.write(f"{self}\n")
        self.fp.flush()
