"""The methods that `ns-train` learns from this package."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import cast

from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from cds_nerf.nerf import compatibility
from cds_nerf.nerf.device import default_device
from cds_nerf.nerf.trainer import CDSTrainerConfig

compatibility.apply()

cds = MethodSpecification(
    config=CDSTrainerConfig(),
    description="Edit a trained field by text. Example: ns-train cds --load-dir outputs/fox/nerfacto/TIME "
    '--pipeline.source-prompt "a photo of a fox" --prompt "a photo of a wolf"',
)


def _source_config() -> TrainerConfig:
    nerfacto = cast(TrainerConfig, deepcopy(method_configs["nerfacto"]))
    model = cast(NerfactoModelConfig, nerfacto.pipeline.model)
    return replace(
        nerfacto,
        method_name="cds-source",
        machine=MachineConfig(device_type=default_device()),
        pipeline=VanillaPipelineConfig(
            # No worker processes, unlike nerfacto's own.
            datamanager=VanillaDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=4096, eval_num_rays_per_batch=4096
            ),
            model=replace(model, use_appearance_embedding=False),
        ),
    )


cds_source = MethodSpecification(
    config=_source_config(),
    description="nerfacto as a good source for cds: without appearance embedding, works offline.",
)
