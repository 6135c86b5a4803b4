"""The cameras of an edit; its photographs only once something asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParser
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.dataparsers.nerfstudio_dataparser import (
    MAX_AUTO_RESOLUTION,
    Nerfstudio,
    NerfstudioDataParserConfig,
)
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.datasets.depth_dataset import DepthDataset
from nerfstudio.utils.io import load_from_json

from cds_nerf.errors import UserError, first_line
from cds_nerf.nerf.camera_dataset import CameraDataset
from cds_nerf.seeding import seed_for

PARSER_ERRORS = (OSError, AssertionError, LookupError, ValueError, RuntimeError, TypeError, AttributeError)
"""What data parsers raise where they do not find what they look for; each has its own."""


@dataclass
class CDSDataManagerConfig(VanillaDataManagerConfig):
    """The data of an edit: its cameras."""

    _target: type = field(default_factory=lambda: CDSDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How the data is read; the source run's settings where you give none."""
    dataset: tyro.conf.Suppress[type[InputDataset]] = InputDataset
    """What the source's model compares with photographs in ns-eval: these alone, or depth, or segments; the source
    run's."""


class CDSDataManager(VanillaDataManager[CameraDataset]):
    """A `VanillaDataManager` that reads no photograph unless a loss or a metric wants one.

    An edit needs the cameras alone. Metrics need the photographs; ns-viewer, ns-render and ns-export get them as far as
    they are there.
    """

    config: CDSDataManagerConfig

    def __init__(self, config: CDSDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(config, *args, **kwargs)
        except PARSER_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{type(config.dataparser).__name__.removesuffix('Config')} cannot read the data "
                f"{config.data or config.dataparser.data} ({reason}): give the --data of the source run"
            ) from error

    @property
    def dataparser(self) -> DataParser:
        """What reads the description of the data; it looks at no photograph to choose between larger and smaller ones.

        Where it is COLMAP's, the largest are chosen: an edit has a size of its own.
        """
        return self._dataparser

    @dataparser.setter
    def dataparser(self, parser: DataParser) -> None:
        if isinstance(parser, Nerfstudio):
            parser.downscale_factor = parser.config.downscale_factor or downscale_factor(parser.config.data)
        elif isinstance(parser, ColmapDataParser) and self.test_mode != "test":
            parser._downscale_factor = parser.config.downscale_factor or 1  # type: ignore[assignment]
        self._dataparser = parser

    def setup_train(self) -> None:
        """Prepare to sample pixels of training photographs, which are loaded when `next_train` is called."""
        if self.test_mode != "val":
            self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)

    def setup_eval(self) -> None:
        """Load nothing: see `load_eval_photographs`."""

    def load_eval_photographs(self) -> None:
        """Load the evaluation photographs, and what else the source's model compares with them, if they are not.

        Raises:
            UserError: if there are none, or one of them cannot be read.
        """
        if self.eval_pixel_sampler is not None:
            return
        outputs = self.eval_dataset._dataparser_outputs
        files = [*outputs.image_filenames, *(outputs.mask_filenames or [])]
        files += outputs.metadata.get("depth_filenames") or [] if self.config.dataset is DepthDataset else []
        if not files:
            raise UserError(f"the data {self.config.data} has no evaluation photographs, with which metrics compare")
        if missing := [file for file in files if not file.exists()]:
            raise UserError(
                f"metrics compare with {len(files)} files, of which {len(missing)} are not there: "
                f"put them back, such as {missing[0]}"
            )
        try:
            self.eval_dataset = self.config.dataset(outputs, self.config.camera_res_scale_factor)  # type: ignore
            super().setup_eval()
        except (OSError, SyntaxError) as error:
            raise UserError(f"an evaluation photograph cannot be read: {first_line(error)}") from error

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Rays and pixels of training photographs, which are loaded the first time."""
        if not hasattr(self, "train_image_dataloader"):
            sampler = self.train_pixel_sampler
            super().setup_train()
            self.train_pixel_sampler = sampler or self.train_pixel_sampler
        return super().next_train(step)

    def next_eval(self, step: int) -> tuple[RayBundle, dict]:
        """Rays and pixels of evaluation photographs, which are loaded the first time."""
        self.load_eval_photographs()
        return super().next_eval(step)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict]:
        """An evaluation camera and its photograph; all are loaded the first time."""
        self.load_eval_photographs()
        return super().next_eval_image(step)

    def next_view(self, step: int, seed: int) -> int:
        """The index of the training camera of a step: in shuffled passes, each camera once before any twice."""
        count = len(self.train_dataset)
        generator = torch.Generator().manual_seed(seed_for(seed, "views", step // count))
        return int(torch.randperm(count, generator=generator)[step % count])


def downscale_factor(data: Path) -> int | None:
    """Which of the photographs' smaller copies nerfstudio takes, found out from their size in `transforms.json`.

    Args:
        data: folder of the capture, or its `transforms.json`.

    Returns:
        1 or a power of 2; None if the file does not say how large the photographs are.
    """
    transforms = data if data.suffix == ".json" else data / "transforms.json"
    meta = load_from_json(transforms)
    first = meta["frames"][0] | meta
    if "w" not in first or "h" not in first:
        return None
    factor, name = 1, Path(first["file_path"]).name
    while max(first["w"], first["h"]) / factor > MAX_AUTO_RESOLUTION:
        if not (transforms.parent / f"images_{2 * factor}" / name).exists():
            break
        factor *= 2
    return factor
