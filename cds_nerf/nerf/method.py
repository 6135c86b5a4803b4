"""The methods that `ns-train` learns from this package."""

from __future__ import annotations

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from cds_nerf.nerf import command_line, compatibility
from cds_nerf.nerf.device import default_device
from cds_nerf.nerf.safe_trainer import SafeTrainer
from cds_nerf.nerf.source_training import SourceTrainerConfig, SplatSourceTrainer
from cds_nerf.nerf.trainer import CDSTrainerConfig

compatibility.apply()
command_line.apply()

cds = MethodSpecification(
    config=CDSTrainerConfig(),
    description="Edit a trained field by text. Example: ns-train cds --load-dir outputs/fox/nerfacto/TIME "
    '--pipeline.source-prompt "a photo of a fox" --prompt "a photo of a wolf"',
)


cds_source = MethodSpecification(
    config=SourceTrainerConfig(
        _target=SafeTrainer,
        method_name="cds-source",
        max_num_iterations=30000,
        steps_per_save=2000,
        mixed_precision=True,
        machine=MachineConfig(device_type=default_device()),
        pipeline=VanillaPipelineConfig(
            # nerfacto's own data manager starts worker processes, which are slow to start and noisy at exit.
            datamanager=VanillaDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=4096, eval_num_rays_per_batch=4096
            ),
            model=NerfactoModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                average_init_density=0.01,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
                use_appearance_embedding=False,
            ),
        ),
        optimizers={
            group: {
                "optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=steps),
            }
            for group, rate, steps in (
                ("proposal_networks", 1e-2, 200000),
                ("fields", 1e-2, 200000),
                ("camera_opt", 1e-3, 5000),
            )
        },
        logging=LoggingConfig(local_writer=LocalWriterConfig(enable=False)),  # whose table the bar stands in for
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="nerfacto as a good source for cds: without appearance embedding, works offline.",
)


cds_splat_source = MethodSpecification(
    config=SourceTrainerConfig(
        _target=SplatSourceTrainer,
        method_name="cds-splat-source",
        max_num_iterations=30000,
        steps_per_save=2000,
        steps_per_eval_batch=0,  # as in nerfstudio's own splatfacto, which has no such losses
        machine=MachineConfig(device_type=default_device()),
        pipeline=VanillaPipelineConfig(
            datamanager=FullImageDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True), cache_images_type="uint8"
            ),
            model=SplatfactoModelConfig(use_scale_regularization=True),  # needles show where an edit moves them
        ),
        optimizers={
            "means": {
                "optimizer": AdamOptimizerConfig(lr=1.6e-4, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1.6e-6, max_steps=30000),
            },
            "camera_opt": {
                "optimizer": AdamOptimizerConfig(lr=1e-4, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=5e-7, max_steps=30000),
            },
            **{
                group: {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": None}
                for group, rate in (
                    ("features_dc", 0.0025),
                    ("features_rest", 0.0025 / 20),
                    ("opacities", 0.05),
                    ("scales", 0.005),
                    ("quats", 0.001),
                    ("bilateral_grid", 2e-3),
                )
            },
        },
        logging=LoggingConfig(local_writer=LocalWriterConfig(enable=False)),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="splatfacto as a good source for cds: without needles, works offline and without a GPU.",
)
