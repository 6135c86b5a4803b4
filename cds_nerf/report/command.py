"""`cds-nerf evaluate`: imports torch and nerfstudio only when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from cds_nerf.errors import UserError

if TYPE_CHECKING:
    from cds_nerf.evaluation.edit_metrics import EditedViews


@dataclass
class EvaluateEdits:
    """Say how good edits are: of scenes, from their run folders, or of pictures, from files before and after.

    A scene's held-out views are rendered from the edited field and from its source. Several runs stand side by side.
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf evaluate outputs/fox/cds/2025-01-31_120000
  cds-nerf evaluate outputs/fox/cds/wolf outputs/fox/cds/bear --orbit 60
  cds-nerf evaluate cat.png edited/cat-a-pig.png --source-prompt "a cat" --target-prompt "a pig"
  cds-nerf evaluate photos/ edited/ --mask masks/ --skip clip dino"""

    paths: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN [RUN ...] | BEFORE AFTER", help_behavior_hint=""),
    ]
    """Run folders of edits; or a picture before and one after; or two folders of pictures of the same names."""
    output: Path = Path("evaluation")
    """Folder for table.md, metrics.json, metrics.csv and contact_sheet.png; it must not exist or be empty."""
    source_prompt: str | None = None
    """Describes pictures before the edit; a run knows its own."""
    target_prompt: str | None = None
    """Describes what pictures should become; a run knows its own."""
    mask: Path | None = None
    """Where pictures may change, white: one for all of them or a folder; a run knows where its edit may act."""
    orbit: int = 0
    """Frames of an orbit around the scene, in place of the held-out views."""
    camera_path: Path | None = None
    """A camera path saved from nerfstudio's viewer, in place of the held-out views."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP model: a hub id or a folder."""
    dino: str = "facebook/dino-vitb8"
    """DINO model of the structure distance: a hub id or a folder."""
    skip: tuple[Literal["clip", "dino", "lpips"], ...] = ()
    """Metrics that are not wanted. Those whose networks cannot be had are left out and named."""
    device: str | None = None
    """Where the networks run; by default cuda where there is one."""

    def run(self) -> int:
        """Measure, print the table, and write everything.

        Returns:
            The exit status, 0.

        Raises:
            UserError: if a path or an option cannot be used.
        """
        paths = [path.expanduser() for path in self.paths]
        runs = self._check(paths)

        import torch

        from cds_nerf.evaluation.edit_metrics import Judges, measure
        from cds_nerf.files import whole_file
        from cds_nerf.report.sheet import sheet_of_edits
        from cds_nerf.report.tables import as_csv, as_json, markdown_table

        edits = self._read_runs(paths) if runs else [self._read_pictures(*paths)]
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        judges = Judges.load(self.clip, self.dino, self.skip, device)
        measured = [measure(edit, judges) for edit in edits]
        table = markdown_table({edit.name: values for edit, values in zip(edits, measured, strict=True)})
        written = {
            "table.md": table + "\n",
            "metrics.json": as_json(edits, measured, judges.left_out),
            "metrics.csv": as_csv(edits, measured),
        }
        for name, text in written.items():
            with whole_file(self.output / name) as file:
                file.write_text(text, "utf8")
        with whole_file(self.output / "contact_sheet.png") as file:
            sheet_of_edits(edits).save(file)
        print(f"{table}\n")
        for name, reason in judges.left_out.items():
            print(f"left out: {name}, because {reason}")
        print(f"wrote {', '.join([*written, 'contact_sheet.png'])} in {self.output}")
        return 0

    def _check(self, paths: list[Path]) -> bool:
        """Whether the paths are runs; raises a UserError where they or the options do not go together."""
        if not paths:
            raise UserError("there is nothing to evaluate: name runs, or pictures before and after")
        for path in paths:
            if not path.exists():
                raise UserError(f"{path} does not exist")
        if self.output.is_dir() and any(self.output.iterdir()):
            raise UserError(f"the output folder {self.output} is not empty: choose another with --output")
        if self.orbit < 0 or self.orbit == 1:
            raise UserError(f"--orbit is {self.orbit}; it must be at least 2, or 0 for the held-out views")
        if self.orbit and self.camera_path is not None:
            raise UserError("--orbit and --camera-path are both given: give one of them")
        runs = [(path / "config.yml").is_file() for path in paths]
        if all(runs):
            for name in ("source_prompt", "target_prompt", "mask"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name.replace('_', '-')} is for pictures: a run knows its own")
            return True
        if any(runs):
            raise UserError(f"{paths[runs.index(False)]} is no run folder (it has no config.yml), and others are")
        if len(paths) != 2:
            raise UserError(
                f"{paths[0]} is no run folder (it has no config.yml); for pictures, give two paths: before and after"
            )
        if self.orbit or self.camera_path is not None:
            raise UserError("--orbit and --camera-path are for runs, and these are pictures")
        return False

    def _read_runs(self, paths: list[Path]) -> list[EditedViews]:
        from cds_nerf.report.edited_run import render_edited_run

        return [render_edited_run(path, self.orbit, self.camera_path) for path in paths]

    def _read_pictures(self, before: Path, after: Path) -> EditedViews:
        from cds_nerf.report.pictures_before_after import read_edited_pictures

        return read_edited_pictures(before, after, self.mask, self.source_prompt, self.target_prompt)
