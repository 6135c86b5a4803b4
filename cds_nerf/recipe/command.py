"""`cds-nerf scene`: an edit from a recipe; imports torch and nerfstudio only when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cds_nerf.errors import UserError


@dataclass
class RunRecipe:
    """Edit a scene as a recipe says: reconstruct the capture, edit the field, show it before and after.

    Stages that are done are skipped, and one that was interrupted goes on where it stopped. configs/ has recipes.
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf scene configs/demo.yaml
  cds-nerf scene my-capture.yaml"""

    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help_behavior_hint="")]
    """The recipe, a YAML file; relative paths in it start from the working directory."""

    def run(self) -> int:
        """Run the stages that are not done.

        Returns:
            The exit status, 0.

        Raises:
            UserError: if the recipe cannot be followed, before anything is started; or if a stage fails.
        """
        from cds_nerf.recipe.recipe import read_recipe

        recipe = read_recipe(self.recipe.expanduser())

        from cds_nerf.recipe.stages import run_recipe

        try:
            run_recipe(recipe)
        except (UserError, OSError) as error:
            raise UserError(f"{self.recipe}: {error}") from error
        return 0
