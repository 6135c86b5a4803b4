"""`cds-nerf history`: imports torch and nerfstudio only when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro


@dataclass
class ShowHistory:
    """Say what was done to a field, from its training to the last edit of an edit, and how each edit is repeated.

    Shown of each edit: its source run, prompts, settings, what was changed live and when, its seed, and a command.
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf history outputs/fox/cds/2025-01-31_120000"""

    path: tyro.conf.Positional[Path]
    """Folder of the run."""

    def run(self) -> int:
        """Print the history.

        Returns:
            The exit status, 0.

        Raises:
            UserError: if the folder is no run's, or a run cannot be read.
        """
        from cds_nerf.report.history import history

        print(history(self.path))
        return 0
