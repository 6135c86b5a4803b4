"""The cameras of an edit; its photographs only once something asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import (
    DataManagerConfig,
    VanillaDataManager,
    VanillaDataManagerConfig,
)
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
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


class _ParserWithoutPhotographs:
    test_mode: Literal["test", "val", "inference"]

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


class CDSDataManager(_ParserWithoutPhotographs, VanillaDataManager[CameraDataset]):
    """A `VanillaDataManager` that reads no photograph unless a loss or a metric wants one.

    An edit needs the cameras alone. Metrics need the photographs; ns-viewer, ns-render and ns-export get them as far as
    they are there.
    """

    config: CDSDataManagerConfig

    def __new__(cls, config: Any, *args: Any, **kwargs: Any) -> Any:
        """The data manager of the settings; nerfstudio's other commands take the method's, whatever they say."""
        if isinstance(config, CDSImageDataManagerConfig):
            return CDSImageDataManager(config, *args, **kwargs)  # type: ignore[abstract]
        return super().__new__(cls)

    def __init__(self, config: CDSDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        with _unreadable_told(config):
            super().__init__(config, *args, **kwargs)

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
        self.eval_dataset = evaluation_photographs(self, self.config.dataset)
        with _unreadable_photograph_told():
            super().setup_eval()

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

    def next_view(self, draw: int, seed: int) -> int:
        """The index of the training camera of a draw: see `view_of_draw`."""
        return view_of_draw(draw, seed, len(self.train_dataset))


@dataclass
class CDSImageDataManagerConfig(FullImageDatamanagerConfig):
    """The data of an edit of what is drawn a whole image at a time: its cameras."""

    _target: type = field(default_factory=lambda: CDSImageDataManager)


class CDSImageDataManager(_ParserWithoutPhotographs, FullImageDatamanager[CameraDataset]):
    """A `FullImageDatamanager`, which reads no photograph before it is asked for one, and undistorts what it reads."""

    config: CDSImageDataManagerConfig

    def __init__(self, config: CDSImageDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        with _unreadable_told(config):
            super().__init__(config, *args, **kwargs)

    def get_train_rays_per_batch(self) -> int:
        """The pixels of the first view, for nerfstudio's statistics: its own reads all photographs to say that."""
        first = self.train_dataset.cameras[0]
        return int(first.width) * int(first.height)

    def load_eval_photographs(self) -> None:
        """Load the evaluation photographs if they are not.

        Raises:
            UserError: if there are none, or one of them cannot be read.
        """
        if "cached_eval" not in vars(self):
            self.eval_dataset = evaluation_photographs(self, InputDataset)
            with _unreadable_photograph_told():
                self.cached_eval  # noqa: B018 - which loads them

    def next_eval(self, step: int) -> tuple[Cameras, dict]:
        """An evaluation camera and its photograph; all are loaded the first time."""
        return self.next_eval_image(step)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict]:
        """An evaluation camera and its photograph; all are loaded the first time."""
        self.load_eval_photographs()
        return super().next_eval_image(step)

    def next_view(self, draw: int, seed: int) -> int:
        """The index of the training camera of a draw: see `view_of_draw`."""
        return view_of_draw(draw, seed, len(self.train_dataset))


def settings_like(config: CDSDataManagerConfig, source: DataManagerConfig) -> DataManagerConfig:
    """An edit's settings, for a data manager of the source's kind.

    Args:
        config: the edit's, complete.
        source: the source run's.
    """
    if not isinstance(source, FullImageDatamanagerConfig):
        return config
    leave_points_out(config.dataparser)
    return CDSImageDataManagerConfig(
        data=config.data,
        dataparser=config.dataparser,
        camera_res_scale_factor=config.camera_res_scale_factor,
        cache_images=source.cache_images,
        cache_images_type=source.cache_images_type,
    )


def leave_points_out(dataparser: Any) -> None:
    """Let a data parser leave out the points that splats began with: what they are now is in the checkpoint.

    nerfstudio reads them with open3d, which is slow to import, and needs libraries that are not everywhere.
    """
    if hasattr(dataparser, "load_3D_points"):
        dataparser.load_3D_points = False


def view_of_draw(draw: int, seed: int, count: int) -> int:
    """The view of a draw, of so many: in shuffled passes, each view once before any twice."""
    generator = torch.Generator().manual_seed(seed_for(seed, "views", draw // count))
    return int(torch.randperm(count, generator=generator)[draw % count])


def evaluation_photographs(manager: CDSDataManager | CDSImageDataManager, dataset: type[InputDataset]) -> Any:
    """The held-out views with what the source's model compares with, which are read when they are asked for.

    Args:
        manager: of an edit.
        dataset: photographs alone, or depth or segments with them.

    Raises:
        UserError: if there are none, or one is not there or cannot be read.
    """
    config, outputs = manager.config, manager.eval_dataset._dataparser_outputs
    files = [*outputs.image_filenames, *(outputs.mask_filenames or [])]
    files += outputs.metadata.get("depth_filenames") or [] if dataset is DepthDataset else []
    if not files:
        raise UserError(f"the data {config.data} has no evaluation photographs, with which metrics compare")
    if missing := [file for file in files if not file.exists()]:
        raise UserError(
            f"metrics compare with {len(files)} files, of which {len(missing)} are not there: "
            f"put them back, such as {missing[0]}"
        )
    with _unreadable_photograph_told():
        return dataset(outputs, config.camera_res_scale_factor)


@contextmanager
def _unreadable_photograph_told() -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError) as error:
        raise UserError(f"an evaluation photograph cannot be read: {first_line(error)}") from error


@contextmanager
def _unreadable_told(config: Any) -> Iterator[None]:
    try:
        yield
    except PARSER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{type(config.dataparser).__name__.removesuffix('Config')} cannot read the data "
            f"{config.data or config.dataparser.data} ({reason}): give the --data of the source run"
        ) from error


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
