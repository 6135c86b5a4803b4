"""The cameras of an edit; its photographs only once something asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from cds_nerf.errors import UserError
from cds_nerf.seeding import seed_for


@dataclass
class CDSDataManagerConfig(VanillaDataManagerConfig):
    """The data of an edit: its cameras."""

    _target: type = field(default_factory=lambda: CDSDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How the data is read; the source run's settings where you give none."""


class CDSDataManager(VanillaDataManager):
    """A `VanillaDataManager` that reads no photograph while an edit runs, unless a loss or a metric wants one.

    An edit (`test_mode` "val") sees its training cameras; ns-eval, ns-export and the others get the photographs.
    """

    config: CDSDataManagerConfig

    def __init__(self, config: CDSDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(config, *args, **kwargs)
        except (OSError, AssertionError, LookupError, ValueError) as error:  # each dataparser has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{type(config.dataparser).__name__.removesuffix('Config')} cannot read the data "
                f"{config.data or config.dataparser.data} ({reason}): give the --data of the source run"
            ) from error

    def setup_train(self) -> None:
        """Load the training photographs, but not for an edit."""
        if self.test_mode != "val":
            super().setup_train()

    def setup_eval(self) -> None:
        """Load the evaluation photographs, but not for an edit."""
        if self.test_mode != "val":
            super().setup_eval()

    def load_eval_photographs(self) -> None:
        """Load the evaluation photographs if they are not."""
        if self.eval_pixel_sampler is None:
            super().setup_eval()

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Rays and pixels of training photographs, which are loaded the first time."""
        if self.train_pixel_sampler is None:
            super().setup_train()
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
