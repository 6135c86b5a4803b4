"""Where nerfstudio must be worked around, each with the upstream issue and when the workaround can go.

nerfstudio imports its plugins at the start of every ns- command, so that `apply` heals them all.
"""

from __future__ import annotations

import codecs
import copy
import functools
import inspect
import math
import pickle
import sys
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torchmetrics.image.lpip
import trimesh
from jaxtyping import Int
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils import writer
from nerfstudio.utils.io import load_from_json
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import EventType
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import CameraState, get_camera
from nerfstudio.viewer_legacy.server.viewer_utils import SetTrace
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from cds_nerf.errors import UserError
from cds_nerf.fields.splat_rasterization import rasterization


def apply() -> None:
    """Install the workarounds that concern every ns- command. Once is enough; more do no harm."""
    load_checkpoints_safely()
    fetch_lpips_when_needed()
    if not torch.cuda.is_available():
        draw_splats_without_cuda()
        keep_photographs_without_cuda()
    let_validation_and_test_views_stand_for_each_other()
    read_points_without_open3d()
    let_trainers_add_to_what_the_viewer_shows()


def load_checkpoints_safely() -> None:
    """Let `torch.load` read nerfstudio's checkpoints with `weights_only=True`, its default since torch 2.6.

    Their scheduler state holds a numpy scalar: https://github.com/nerfstudio-project/nerfstudio/issues/3683. Can go
    when nerfstudio writes checkpoints without one, and old checkpoints no longer matter. numpy 2 moved the scalar's
    module, so that it is allowed by both names.
    """
    if torch.__version__ < "2.6":
        torch.serialization._weights_only_unpickler = WeightsOnly  # type: ignore[assignment]
        return
    torch.serialization.add_safe_globals(
        [
            *((NUMPY_SCALAR, name) for name in NUMPY_SCALAR_NAMES),
            np.dtype,
            type(np.dtype(np.float64)),
        ]
    )


NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
NUMPY_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class WeightsOnly:
    """In place of the module by which a torch before 2.6 unpickles with `weights_only=True`.

    That one can be told of no numpy scalar (before 2.4), or by one name only. Can go when torch 2.6 is the oldest.
    """

    class Unpickler(pickle.Unpickler):
        """Finds what torch's own one allows, numpy's scalars, and nothing else."""

        def find_class(self, module: str, name: str) -> Any:
            """The class or function of a checkpoint.

            Raises:
                pickle.UnpicklingError: if it is not among those that are allowed.
            """
            allowed = torch._weights_only_unpickler._get_allowed_globals()  # type: ignore[attr-defined]
            allowed = {**allowed, **dict.fromkeys(NUMPY_SCALAR_NAMES, NUMPY_SCALAR)}
            allowed |= {"numpy.dtype": np.dtype, "_codecs.encode": codecs.encode}  # which make a scalar
            try:
                return allowed[f"{module}.{name}"]
            except KeyError:
                raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no weight") from None

    @classmethod
    def load(cls, file: IO[bytes], **options: Any) -> Any:
        """Unpickle one object, as `pickle.load`."""
        return cls.Unpickler(file, **options).load()


class LazyLPIPS(nn.Module):
    """Stands in for the network of torchmetrics' LPIPS until its first use; then fetches and becomes it.

    It has no parameters, so that AlexNet does not enter checkpoints, and ignores AlexNet's weights in those that have
    them. Where the weights cannot be had, the metric is NaN, once with a warning.

    Args:
        build: makes the real network.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.network = functools.cache(lambda: self._fetch(build))

    @staticmethod
    def _fetch(build: Callable[[], nn.Module]) -> nn.Module | None:
        try:
            return build()
        except OSError as error:  # urllib's and huggingface_hub's errors are OSErrors
            CONSOLE.print(
                f"[yellow]LPIPS is left out of the metrics: its AlexNet weights cannot be downloaded ({error}). "
                f"Offline, put them into {Path(torch.hub.get_dir()) / 'checkpoints'} beforehand."
            )
            return None

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing is missing, and nothing is too much."""

    def forward(self, image_1: Tensor, image_2: Tensor, normalize: bool = False) -> Tensor:
        """LPIPS [B,1,1,1] of two image batches [B,3,H,W]; NaN where the network cannot be had."""
        network = self.network()
        if network is None:
            return image_1.new_full((len(image_1), 1, 1, 1), math.nan)
        return network.to(image_1.device)(image_1, image_2, normalize=normalize)


def fetch_lpips_when_needed() -> None:
    """Build models without downloading LPIPS' AlexNet, and leave the metric out where it cannot be had.

    Every nerfstudio model builds it at once: https://github.com/nerfstudio-project/nerfstudio/issues/2415. Can go when
    nerfstudio builds the metric on first use.
    """
    build = torchmetrics.image.lpip._NoTrainLpips
    if isinstance(build, functools.partial):
        return

    def lazily(build: Callable[..., nn.Module], **kwargs: Any) -> LazyLPIPS:
        return LazyLPIPS(functools.partial(build, **kwargs))

    torchmetrics.image.lpip._NoTrainLpips = functools.partial(lazily, build)  # type: ignore[misc,assignment]

    get_average = VanillaPipeline.get_average_image_metrics
    get_one = VanillaPipeline.get_eval_image_metrics_and_images

    @functools.wraps(get_average)
    def get_average_image_metrics(*args: Any, **kwargs: Any) -> dict[str, float]:
        return _without_missing_lpips(get_average(*args, **kwargs))

    @functools.wraps(get_one)
    def get_eval_image_metrics_and_images(*args: Any, **kwargs: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        metrics, images = get_one(*args, **kwargs)
        return _without_missing_lpips(metrics), images

    VanillaPipeline.get_average_image_metrics = get_average_image_metrics  # type: ignore[method-assign]
    VanillaPipeline.get_eval_image_metrics_and_images = get_eval_image_metrics_and_images  # type: ignore[method-assign]


def _without_missing_lpips(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not (name.startswith("lpips") and math.isnan(value))}


def update_proposals_in_every_call(model: nn.Module) -> None:
    """Give the proposal networks gradients in every call of the model's sampler.

    nerfstudio's sampler decides in each call whether they get any, and the first call of a step changes the answer for
    the next: the chunks of one image, and a chunk recomputed under activation checkpointing, would take different
    branches. No upstream issue; can go when the decision is made once a step.
    """
    sampler = getattr(model, "proposal_sampler", None)
    if isinstance(sampler, ProposalNetworkSampler):
        sampler.update_sched = lambda step: -1


def keep_constants_of_encodings_on_device(model: nn.Module) -> None:
    """Move the constants of hash encodings in plain torch to where their tables are.

    nerfstudio keeps them on the CPU, and each of the many calls that render a view waits until they are sent again, two
    for each encoding and one for each of its eight hashes. No upstream issue; can go when they are buffers.
    """
    for encoding in _encodings(model):
        device = encoding.hash_table.device
        encoding.scalings, encoding.hash_offset = encoding.scalings.to(device), encoding.hash_offset.to(device)
        encoding.primes = torch.tensor(HASH_PRIMES, device=device)
        encoding.hash_fn = functools.partial(_hash, encoding)


HASH_PRIMES = (1, 2654435761, 805459861)


def _hash(encoding: Any, corners: Int[Tensor, "*batch levels 3"]) -> Int[Tensor, "*batch levels"]:
    """Places in an encoding's table: Instant-NGP (arXiv 2201.05989), equation 4."""
    x, y, z = (corners * encoding.primes).unbind(-1)
    return (x ^ y ^ z) % encoding.hash_table_size + encoding.hash_offset


def constants_of_encodings(model: nn.Module) -> list[Tensor]:
    """What `keep_constants_of_encodings_on_device` has moved there."""
    return [part for one in _encodings(model) for part in (one.scalings, one.hash_offset, one.primes)]


def _encodings(model: nn.Module) -> list[Any]:
    return [one for one in model.modules() if isinstance(one, HashEncoding) and one.tcnn_encoding is None]


def draw_splats_without_cuda() -> None:
    """Let splatfacto train, render and be evaluated where there is no CUDA, as gsplat would do it there.

    gsplat rasterizes with CUDA alone (https://github.com/nerfstudio-project/gsplat/issues/635), and splatfacto moves
    its colours and its cameras' intrinsics to it (https://github.com/nerfstudio-project/nerfstudio/issues/3290). Its
    compiled `get_viewmat` asks for a C++ compiler. Can go when gsplat has kernels for a CPU and nerfstudio calls them.
    """
    if splatfacto.rasterization is rasterization:
        return
    splatfacto.rasterization = rasterization
    splatfacto.get_viewmat = inspect.unwrap(splatfacto.get_viewmat)
    for name in ("populate_modules", "get_outputs"):
        setattr(SplatfactoModel, name, _without_cuda(getattr(SplatfactoModel, name)))


_tensor_cuda = threading.RLock()
"""Held by who has replaced `torch.Tensor.cuda`: the viewer renders in a thread of its own."""


def _without_cuda(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a module, whose calls of `cuda()` leave tensors where the module is."""

    @functools.wraps(method)
    def on_own_device(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _tensor_cuda, unittest.mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor.to(_device(model))):
            return method(model, *args, **kwargs)

    return on_own_device


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def keep_photographs_without_cuda() -> None:
    """Let `--pipeline.datamanager.cache-images cpu` be understood where there is no CUDA.

    nerfstudio then pins the memory for copies to a GPU, which asks for one. No upstream issue is known; can go when it
    looks whether there is one (FullImageDatamanager._load_images).
    """
    load = inspect.unwrap(FullImageDatamanager._load_images)

    @functools.wraps(load)
    def load_images(manager: Any, split: Any, cache_images_device: Any) -> Any:
        return load(manager, split, "gpu")  # the manager's own device, which is the CPU

    setattr(FullImageDatamanager, "_load_images", load_images)  # noqa: B010 - mypy refuses the plain assignment


def read_points_without_open3d() -> None:
    """Read the points that splats begin with where open3d, with which nerfstudio reads them, cannot be imported.

    It needs libraries that are not everywhere, such as libusb and libGL, for what has nothing to do with points. No
    upstream issue; can go when nerfstudio reads them with trimesh, which it has as well.
    """
    load_points = Nerfstudio._load_3D_points
    if hasattr(load_points, "__wrapped__"):
        return

    @functools.wraps(load_points)
    def load_3D_points(  # noqa: N802 - nerfstudio's name
        self: Nerfstudio, ply_file_path: Path, transform_matrix: Tensor, scale_factor: float
    ) -> dict[str, Tensor] | None:
        try:
            return load_points(self, ply_file_path, transform_matrix, scale_factor)
        except (ImportError, OSError) as error:
            if not ply_file_path.is_file():
                raise UserError(f"the points {ply_file_path} are not there, which transforms.json names") from error
            cloud: Any = trimesh.load(ply_file_path, process=False)
        if not len(cloud.vertices):
            return None
        points = torch.tensor(np.asarray(cloud.vertices), dtype=torch.float32)
        points = points @ transform_matrix[:, :3].T + transform_matrix[:, 3]
        return {"points3D_xyz": points * scale_factor, "points3D_rgb": torch.tensor(np.asarray(cloud.colors)[:, :3])}

    Nerfstudio._load_3D_points = load_3D_points  # type: ignore[method-assign]


def let_edits_start_their_own_processes(edits: type) -> None:
    """Let `ns-train cds --machine.num-devices N` start in one process, whose trainer starts the others.

    nerfstudio's launcher starts all of them, asks for CUDA whatever the device is (`_distributed_worker`), ends with
    torch's traceback when one fails, and with status 0 after Ctrl-C. No upstream issue; can go when it does neither.
    To be called after the command line has been read: this package is imported while that module is.

    Args:
        edits: the class of an edit's configuration.
    """
    for module in (sys.modules.get("nerfstudio.scripts.train"), sys.modules["__main__"]):
        launch: Any = getattr(module, "launch", None)
        if getattr(launch, "__module__", "") != getattr(module, "__name__", None) or hasattr(launch, "__wrapped__"):
            continue

        @functools.wraps(launch)
        def launch_one(*args: Any, launch: Any = launch, **kwargs: Any) -> None:
            if isinstance(kwargs["config"], edits):
                kwargs["num_devices_per_machine"] = 1
            launch(*args, **kwargs)

        module.launch = launch_one  # type: ignore[union-attr]


@contextmanager
def events_written_every(seconds: float) -> Iterator[None]:
    """Within, nerfstudio's event writers get what they are to write now and then, and not after each step.

    Each value that they write is read from the device by itself, and the host waits for all of the step that it is of
    (`nerfstudio.utils.writer`). Here those of many steps are read together. No upstream issue; can go when nerfstudio
    does likewise.
    """
    write, due = writer.write_out_storage, time.monotonic() + seconds

    def write_all() -> None:
        _read_events()
        write()

    def write_when_due() -> None:
        nonlocal due
        if time.monotonic() >= due:
            write_all()
            due = time.monotonic() + seconds

    writer.write_out_storage = write_when_due
    try:
        yield
    finally:
        writer.write_out_storage = write
        write_all()


def _read_events() -> None:
    """Make numbers of all single values among the events, with one wait for each device."""
    places: list[tuple[dict[str, Any], str]] = []
    for event in writer.EVENT_STORAGE:
        if event["write_type"] is EventType.SCALAR:
            places.append((event, "event"))
        elif event["write_type"] is EventType.DICT:
            event["event"] = dict(event["event"])  # the step's own keeps its tensors
            places += [(event["event"], name) for name in event["event"]]
    places = [(place, name) for place, name in places if isinstance(place[name], Tensor)]
    for device in {place[name].device for place, name in places}:
        there = [(place, name) for place, name in places if place[name].device == device]
        values = torch.stack([place[name].detach().float().squeeze() for place, name in there]).tolist()
        for (place, name), value in zip(there, values, strict=True):
            place[name] = value


def copy_of(model: nn.Module) -> Any:
    """A copy of a model that shares nothing with it.

    The layers of nerfstudio's surfaces keep their normalised weights as part of a graph, which cannot be copied
    (https://github.com/pytorch/pytorch/pull/103001). Can go when they use `torch.nn.utils.parametrizations`.
    """
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    hook(module, None)  # makes them anew, without a graph
    return copy.deepcopy(model)


def let_validation_and_test_views_stand_for_each_other() -> None:
    """Take one of "val" and "test" where the data lists no views for the other.

    nerfstudio asks for "val" while it trains and for "test" when it opens the run later, and each ends it where the
    data has lists of views for "train" but none for it: https://github.com/nerfstudio-project/nerfstudio/issues/2933.
    Can go when nerfstudio does so itself, or says so before it trains.
    """
    generate = Nerfstudio._generate_dataparser_outputs
    if hasattr(generate, "__wrapped__"):
        return

    @functools.wraps(generate)
    def generate_dataparser_outputs(self: Nerfstudio, split: str = "train") -> DataparserOutputs:
        transforms = self.config.data if self.config.data.suffix == ".json" else self.config.data / "transforms.json"
        listed = load_from_json(transforms) if transforms.is_file() else {}
        return generate(self, _first_listed(split, lambda name: bool(listed.get(f"{name}_filenames"))))

    Nerfstudio._generate_dataparser_outputs = generate_dataparser_outputs  # type: ignore[method-assign]

    get_indices = ColmapDataParser._get_image_indices

    @functools.wraps(get_indices)
    def get_image_indices(self: ColmapDataParser, image_filenames: list[Path], split: str) -> Any:
        def is_listed(name: str) -> bool:
            path = self.config.data / f"{name}_list.txt"
            return path.is_file() and bool(path.read_text("utf8").strip())

        return get_indices(self, image_filenames, _first_listed(split, is_listed))

    ColmapDataParser._get_image_indices = get_image_indices  # type: ignore[method-assign]


def _first_listed(split: str, is_listed: Callable[[str], bool]) -> str:
    """The split, or the first of those that can stand for it that is listed."""
    stand_ins = {"val": ("val", "validation", "test"), "test": ("test", "val", "validation")}
    return next((name for name in stand_ins.get(split, ()) if is_listed(name)), split)


def let_trainers_add_to_what_the_viewer_shows() -> None:
    """Let a trainer with a method `viewer_outputs` add to the outputs among which the viewer's user chooses.

    The viewer shows what the model renders, and tells nobody which of it was chosen. No upstream issue; can go when it
    asks the pipeline.
    """
    render: Any = RenderStateMachine._render_img
    if hasattr(render, "__wrapped__"):
        return

    @functools.wraps(render)
    def render_with_more(machine: RenderStateMachine, camera_state: CameraState) -> Any:
        outputs = render(machine, camera_state)
        viewer: Any = machine.viewer
        if not hasattr(viewer.trainer, "viewer_outputs"):
            return outputs
        panel = viewer.control_panel
        height, width = next(iter(outputs.values())).shape[:2]
        camera = get_camera(camera_state, height, width).to(viewer.get_model().device)
        chosen = [panel.output_render, *([panel.split_output_render] if panel.split else [])]
        with ExitStack() as stack:
            stack.enter_context(viewer.train_lock or nullcontext())
            stack.enter_context(torch.no_grad())
            if panel.crop_viewport:
                color = torch.tensor(panel.background_color or (0, 0, 0), device=viewer.get_model().device) / 255
                stack.enter_context(background_color_override_context(color))
            stack.enter_context(SetTrace(machine.check_interrupt))
            box = panel.crop_obb if panel.crop_viewport else None
            return viewer.trainer.viewer_outputs(outputs, camera, box, chosen)

    RenderStateMachine._render_img = render_with_more  # type: ignore[assignment,method-assign]
