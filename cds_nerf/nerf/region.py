"""Where in a view an edit may act: where the prompts disagree, within masks, within a box, where a text says."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from PIL import Image, PngImagePlugin
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from cds_nerf.errors import UserAdvice, UserError
from cds_nerf.fields.field import Within
from cds_nerf.fields.gathering import SeenMap, agreement_at, can_project, gather
from cds_nerf.files import whole_file
from cds_nerf.image_files import open_upright, reading
from cds_nerf.nerf.region_edges import follow_edges
from cds_nerf.nerf.view_store import ViewStore
from cds_nerf.pictures import read_mask

KINDS = ("auto", "text", "masks", "box", "none")
"""What a region may be made of."""
GATHERED = frozenset({"auto", "text"})
"""Those that are gathered from what views say."""
SAMPLE_SIZES = (10, 16, 32)
"""How many views have a say in what is gathered: the first ten before the first step, more as they are drawn."""
PEAK_QUANTILE = 0.99
"""Of what the views agree on: what counts as the greatest."""
BOX_TOLERANCE = 0.05
"""A surface that is before a box by less than this share of its shortest side is taken to be in it."""
OF_KINDS = {
    "ramp": GATHERED,
    "follow_edges": GATHERED | {"box"},
    "text": {"text"},
    "masks": {"masks"},
    "box_center": {"box"},
    "box_rotation": {"box"},
    "box_scale": {"box"},
}
"""The kinds that each setting of a region is for."""
WRITTEN_BY = "cds-nerf"
"""The text chunk of a region's picture that tells it from one that was painted over."""


@dataclass
class RegionConfig:
    """Where the edit may act; elsewhere the field is held to the source."""

    kind: str = "auto"
    """auto: where the prompts disagree about the scene. text: where its text is. masks: white in the pictures of a
    folder. box: within a box. none: anywhere. Several are joined by + (or) and - (but not), such as auto+box-masks."""
    ramp: tuple[float, float] = (0.65, 0.85)
    """For auto and text: fractions of the greatest agreement of the views between which the region rises from 0 to 1.
    Lower ones make it wider."""
    follow_edges: bool = False
    """For auto, text and box: let the region end where the source's views show an edge, rather than a latent or two
    around what it is about, or at the sides of a loose box. Best for another colour or material; another shape may need
    the room."""
    text: str = ""
    """For text: what the edit may act on, such as "the fox"."""
    masks: Path | None = None
    """For masks: a folder with one for each training image, called as the image is and with its proportions; by default
    the capture's own."""
    box_center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """For box: its centre in the scene's coordinates, as the viewer's crop shows it."""
    box_rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """For box: its roll, pitch and yaw in radians, likewise."""
    box_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """For box: its sides, likewise."""

    def terms(self) -> list[tuple[str, str]]:
        """The kinds in their order, each with the sign before it.

        Raises:
            UserError: if the kind is none of `KINDS` joined by signs, or lacks what it needs.
        """
        terms = re.findall(r"([+-]?)([a-z]+)", self.kind)
        if "".join(sign + kind for sign, kind in terms) != self.kind or not terms:
            terms = [("", self.kind)]
        for _, kind in terms:
            if kind not in KINDS:
                raise UserError(
                    f"--pipeline.region.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}, or several of "
                    "them joined by + and -, such as auto-box"
                )
        kinds = [kind for _, kind in terms]
        if "none" in kinds and len(kinds) > 1:
            raise UserError(f"--pipeline.region.kind is {self.kind!r}; none goes with no other")
        low, high = self.ramp
        if not 0 <= low < high <= 1:
            raise UserError(f"--pipeline.region.ramp is {low:g} {high:g}; the first must be less, and both from 0 to 1")
        if "text" in kinds and not self.text.strip():
            raise UserError('--pipeline.region.text is missing: say what the edit may act on, such as "the fox"')
        if self.masks is not None and not self.masks.is_dir():
            raise UserError(f"--pipeline.region.masks is {self.masks}, which is no folder")
        if "box" in kinds and min(self.box_scale) <= 0:
            raise UserError(f"--pipeline.region.box-scale is {self.box_scale}; each side must be greater than 0")
        return [(sign or "+", kind) for sign, kind in terms]

    def check_acts(self, names: Iterable[str]) -> None:
        """Check that settings are for a kind that the region is made of.

        Raises:
            UserError: if one is not.
        """
        kinds = {kind for _, kind in self.terms()}
        for name in names:
            own = OF_KINDS.get(name, kinds)
            if own.isdisjoint(kinds):
                raise UserError(
                    f"--pipeline.region.{name.replace('_', '-')} is for the region {' or '.join(sorted(own))}, and "
                    f"--pipeline.region.kind is {self.kind}"
                )


@dataclass(frozen=True)
class _KnownRegion:
    stamp: tuple[int, ...]
    """Of the picture that holds it."""
    sample_size: int | None
    """How many views had a say; None where it was painted."""
    region: Float[Tensor, "1 height width"]


@dataclass
class Region:
    """Where an edit may act in each training view, and in what any camera sees.

    Args:
        config: what it is made of.
        store: of the source's views; its folder gets a picture of each view's region in `relevance/`, which may be
            painted over.
        cameras: of the training views, at the guidance's size.
        order: the views in the order in which the edit draws them.
        latent_pixels: how many pixels wide a latent is; relevance is measured for each latent.
        nearest: how far from a camera there may be something to edit, at the least.
        distance: from a camera [1] of the unedited field to what each pixel shows; None where it knows none.
        measure: for "auto" and "text", a view's relevance [1,1,h,w], from its latents, the kind and its index.
        masks: the masks of the capture, one for each view, or None; masked pixels never guide an edit.
        names: of the training images.
        asked: what the measurements of "auto" and "text" are told apart by from those under other prompts and texts.
    """

    config: RegionConfig
    store: ViewStore
    cameras: Sequence[Cameras]
    order: Sequence[int]
    latent_pixels: int
    nearest: float
    distance: Callable[[Cameras], Float[Tensor, "h w"] | None]
    measure: Callable[[Float[Tensor, "1 channels h w"], str, int], Float[Tensor, "1 1 h w"]]
    masks: Sequence[Path] | None
    names: Sequence[Path]
    asked: Mapping[str, str] = field(default_factory=dict)
    _views: dict[int, _KnownRegion] = field(default_factory=dict)
    _seen: dict[tuple[str, int], tuple[list[SeenMap], float]] = field(default_factory=dict)
    _within: tuple[list[Float[Tensor, "1 height width"]], Within] | None = None

    def __post_init__(self) -> None:
        self.terms = self.config.terms()
        self.own_masks = self._find_masks() if any(kind == "masks" for _, kind in self.terms) else None

    def prepare(self, step: int = 0) -> list[int]:
        """The views that are looked at before a step: those that have a say, for kinds that are gathered."""
        gathered = any(kind in GATHERED for _, kind in self.terms)
        return list(self.order[: self._sample_size(step) if gathered else 1])

    def look_at(self, index: int) -> None:
        """Measure what is gathered of a view, where that has not been done; other processes find it in the folder."""
        for _, kind in self.terms:
            if kind in GATHERED:
                self._distance_of_view(index)
                self._measured(kind, index)

    def of_view(self, index: int, step: int) -> Float[Tensor, "1 height width"]:
        """Where in a training view the edit may act at a step, in 0..1.

        Raises:
            UserError: if a mask or a painted picture cannot be read, or has another size.
        """
        size = self._sample_size(step)
        path = self.store.folder / "relevance" / f"{index:05d}.png"
        known = self._views.get(index)
        unchanged = known is not None and known.stamp == _stamp(path)
        if known is not None and unchanged and known.sample_size in (None, size):
            return known.region
        camera = self.cameras[index]
        painted = None if unchanged else _read_painted(path, camera)
        if painted is not None:
            self._views[index] = _KnownRegion(_stamp(path), None, painted)
            return painted
        region = self._combine(camera, self._distance_of_view(index), size, own=index)
        if self.masks is not None:
            region = region * _mask_at(self.masks[index], camera)
        region = (region * 255).round() / 255
        region = region.where(
            region >= 2 / 255, 0
        )  # a picture with no values but 0 and 1 would count as black and white
        _write(path, region)
        self._views[index] = _KnownRegion(_stamp(path), size, region)
        return region

    def of_camera(self, camera: Cameras, step: int) -> Float[Tensor, "1 height width"]:
        """Where the edit may act in what a camera [1] sees, in 0..1; masks of training images have no say there."""
        small = _at_latents(camera, self.latent_pixels)
        return self._combine(camera, self.distance(small), self._sample_size(step), own=None)

    def within(self, step: int) -> Within | None:
        """Says of points, at a step, which share of the views that see them have them within; 1 if none sees them.

        It stays the same object until the region changes. None if the region is everywhere, or the scene's geometry is
        not known.
        """
        if self.config.kind == "none" or not self._has_geometry:
            return None
        views = self.order[: self._sample_size(step)]
        regions = [self.of_view(index, step) for index in views]
        if self._within is None or [id(region) for region in regions] != [id(region) for region in self._within[0]]:
            seen = []
            for index, region in zip(views, regions, strict=True):
                distance = self._distance_of_view(index)
                assert distance is not None
                seen.append(SeenMap(self.cameras[index], distance, region[0]))

            def within(points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
                agreement, count = agreement_at(points, seen)
                return torch.where(count > 0, agreement, 1)

            self._within = regions, within
        return self._within[1]

    @cached_property
    def has_a_place(self) -> bool:
        """Whether `of_camera` knows of anything: a box does, and what views say where their geometry is known."""
        kinds = {kind for _, kind in self.terms}
        return bool(kinds & {"box", "none"}) or (bool(kinds & GATHERED) and self._has_geometry)

    @cached_property
    def _has_geometry(self) -> bool:
        return all(can_project(camera) for camera in self.cameras) and self._distance_of_view(self.order[0]) is not None

    def _sample_size(self, step: int) -> int:
        drawn = max(step + 1, SAMPLE_SIZES[0])
        return min(max(size for size in SAMPLE_SIZES if size <= drawn), len(self.order))

    def _combine(
        self, camera: Cameras, distance: Float[Tensor, "h w"] | None, size: int, own: int | None
    ) -> Float[Tensor, "1 height width"]:
        shape = (int(camera.height), int(camera.width))
        region = torch.full((1, *shape), 1.0 if self.terms[0][0] == "-" else 0.0)
        for sign, kind in self.terms:
            if kind == "none":
                part = torch.ones(1, *shape)
            elif kind == "box":
                part = self._box(camera, distance)
            elif kind == "masks":
                part = torch.zeros(1, *shape) if own is None else _mask_at(self._masks_of_kind()[own], camera)
            else:
                part = self._gathered(kind, camera, distance, size, own)
            if self.config.follow_edges and own is not None and kind in OF_KINDS["follow_edges"]:
                part = follow_edges(part, self.store.image(own, shape).cpu(), self.latent_pixels)
            region = torch.maximum(region, part) if sign == "+" else torch.minimum(region, 1 - part)
        return region

    def _gathered(
        self, kind: str, camera: Cameras, distance: Float[Tensor, "h w"] | None, size: int, own: int | None
    ) -> Float[Tensor, "1 height width"]:
        if distance is None or not all(can_project(one) for one in (camera, *self.cameras)):
            # Without geometry each view knows only what it says itself.
            values = torch.zeros(1, 1) if own is None else self._measured(kind, own)
        else:
            seen, peak = self._say(kind, size)
            agreement = gather(_at_latents(camera, self.latent_pixels), distance, seen, self.nearest)
            low, high = (fraction * peak for fraction in self.config.ramp)
            values = ((agreement - low) / max(high - low, 1e-6)).clamp(0, 1)
        shape = (int(camera.height), int(camera.width))
        return F.interpolate(values[None, None], shape, mode="bilinear")[0]

    def _say(self, kind: str, size: int) -> tuple[list[SeenMap], float]:
        """What the first views say, and what they agree on most."""
        if (kind, size) not in self._seen:
            views = self.order[:size]
            seen = []
            for index in views:
                distance = self._distance_of_view(index)
                assert distance is not None
                small = _at_latents(self.cameras[index], self.latent_pixels)
                seen.append(SeenMap(small, distance, self._measured(kind, index)))
            agreements = torch.cat([gather(view.camera, view.distance, seen, self.nearest).flatten() for view in seen])
            self._seen[kind, size] = seen, float(agreements.quantile(PEAK_QUANTILE))
        return self._seen[kind, size]

    def _measured(self, kind: str, index: int) -> Float[Tensor, "h w"]:
        name = kind + self.asked.get(kind, "")
        return self.store.measured(index, name, lambda: self.measure(self.store.latents(index), kind, index)[0, 0])

    def _distance_of_view(self, index: int) -> Float[Tensor, "h w"] | None:
        small = _at_latents(self.cameras[index], self.latent_pixels)
        nowhere = torch.full((int(small.height), int(small.width)), torch.nan)

        def measure() -> Float[Tensor, "h w"]:
            distance = self.distance(small)
            return nowhere if distance is None else distance

        distance = self.store.measured(index, "distance", measure)
        return None if distance.isnan().all() else distance

    def _box(self, camera: Cameras, distance: Float[Tensor, "h w"] | None) -> Float[Tensor, "1 height width"]:
        """Where a camera sees into the box: its ray enters it before it meets a surface, or hardly after.

        A surface on the box's side belongs to it, although its distance is known for each latent alone.
        """
        config = self.config
        box = OrientedBox.from_params(config.box_center, config.box_rotation, config.box_scale)
        rays = camera.generate_rays(0, keep_shape=True)
        rotation = box.R.to(rays.origins.cpu())
        origins = (rays.origins.cpu() - box.T) @ rotation
        directions = rays.directions.cpu() @ rotation
        inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
        one, other = (-box.S / 2 - origins) * inverse, (box.S / 2 - origins) * inverse
        enters, leaves = torch.minimum(one, other).amax(dim=-1), torch.maximum(one, other).amin(dim=-1)
        surface = torch.full_like(enters, torch.inf)
        if distance is not None:
            finite = distance[None, None].clamp(max=torch.finfo(distance.dtype).max / 4)
            surface = F.interpolate(finite, enters.shape, mode="bilinear")[0, 0] + BOX_TOLERANCE * min(config.box_scale)
        return ((enters < leaves) & (leaves > 0) & (enters < surface)).float()[None]

    def _masks_of_kind(self) -> Sequence[Path]:
        assert self.own_masks is not None
        return self.own_masks

    def _find_masks(self) -> Sequence[Path]:
        folder = self.config.masks
        if folder is None:
            if self.masks is None:
                raise UserError(
                    "--pipeline.region.kind has masks, but the capture has none (mask_path in transforms.json): "
                    "give a folder of them with --pipeline.region.masks"
                )
            return self.masks
        found = {path.relative_to(folder).with_suffix(""): path for path in sorted(folder.rglob("*")) if path.is_file()}
        masks = []
        for name in self.names:
            ends = [Path(*name.with_suffix("").parts[-parts:]) for parts in range(len(name.parts), 0, -1)]
            mask = next((found[end] for end in ends if end in found), None)
            if mask is None:
                raise UserError(
                    f"the mask folder {folder} has no mask for the image {name.name}: call it {name.stem}.png"
                )
            masks.append(mask)
        return masks


def masks_of_capture(masks: Sequence[Path] | None) -> Sequence[Path] | None:
    """A capture's masks, one for each view; None if it has none, or if they are not all there, which is advised."""
    missing = [mask for mask in masks or () if not mask.exists()]
    if not missing:
        return masks
    advice = (
        f"of the capture's masks {len(set(missing))} are not there, such as {missing[0]}: the edit acts without them"
    )
    warnings.warn(UserAdvice(advice), stacklevel=2)
    return None


def _at_latents(camera: Cameras, latent_pixels: int) -> Cameras:
    """The camera with a pixel for each latent."""
    small = camera[:]  # a new object: the caller's keeps its size
    small.rescale_output_resolution(1 / latent_pixels, scale_rounding_mode="round")
    return small


def _mask_at(path: Path, camera: Cameras) -> Float[Tensor, "1 height width"]:
    """A mask at the size of a view; its proportions must be the view's."""
    width, height = int(camera.width), int(camera.height)
    mask = read_mask(path)
    if abs(mask.width * height / (mask.height * width) - 1) > 0.1:
        raise UserError(
            f"the mask {path} is {mask.width}x{mask.height} pixels, and the view is seen at {width}x{height}: "
            "a mask must have the proportions of its image"
        )
    return to_tensor(mask.resize((width, height), Image.Resampling.BOX))


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when a file does; a look at the directory, not into the file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _write(path: Path, region: Float[Tensor, "1 height width"]) -> None:
    picture = to_pil_image((region * 255).round().byte())
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(WRITTEN_BY, hashlib.sha256(picture.tobytes()).hexdigest())
    with whole_file(path) as file:
        picture.save(file, format="PNG", pnginfo=chunks)


def _read_painted(path: Path, camera: Cameras) -> Float[Tensor, "1 height width"] | None:
    """A region's picture if somebody has painted it; None if it is not there, or as it was written."""
    if not path.exists():
        return None
    mask = read_mask(path, size=(int(camera.width), int(camera.height)), image="the view")
    with reading(path):
        picture = open_upright(path)
    is_as_written = picture.info.get(WRITTEN_BY) == hashlib.sha256(picture.tobytes()).hexdigest()
    return None if is_as_written else to_tensor(mask)
