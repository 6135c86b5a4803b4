"""Pictures of a scene by analytic ray casting: exact, the same surface seen from every view."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cds_nerf.shapes.scene import COLORS, Detail, Scene

FIELD_OF_VIEW = math.radians(42)
"""Of the square images, in radians."""
ORBIT_DISTANCE = 3.4
"""Of the cameras from what they look at."""
LOOK_AT = (0.0, 0.0, 0.4)
"""What the cameras look at: about the middle of the object, which stands at the origin; z is up."""
SAMPLES = 2
"""Rays a pixel, in each direction."""
SHADOW_RAYS = 8
"""Points of the light that a surface point looks for."""
LIGHT_RADIUS = 0.10
"""Of the light's disc, as seen from the scene (tangent of the angle)."""
FLOOR_FADE = (2.5, 5.5)
"""Distances from the object between which the floor fades into the horizon."""
STONE_COLOR = (0.42, 0.40, 0.37)
"""RGB in 0..1."""


def look_at_pose(azimuth: float, elevation: float, distance: float = ORBIT_DISTANCE) -> Float[Tensor, "3 4"]:
    """A camera-to-world pose on the orbit; x right, y up, z backward, as in nerfstudio.

    Args:
        azimuth: in radians.
        elevation: above the floor, in radians.
        distance: from `LOOK_AT`.
    """
    backward = torch.tensor(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = torch.tensor([-math.sin(azimuth), math.cos(azimuth), 0.0])
    up = torch.linalg.cross(backward, right)
    return torch.stack([right, up, backward, torch.tensor(LOOK_AT) + distance * backward], dim=1)


def focal_length(size: int) -> float:
    """In pixels, of images of this side."""
    return size / 2 / math.tan(FIELD_OF_VIEW / 2)


@torch.no_grad()
def render(
    scene: Scene, poses: Float[Tensor, "views 3 4"], size: int
) -> tuple[Float[Tensor, "views 3 size size"], Float[Tensor, "views 1 size size"]]:
    """Views of a scene.

    Args:
        scene: what there is to see.
        poses: camera-to-world, see `look_at_pose`.
        size: side of the square images.

    Returns:
        Images in 0..1, and the share of each pixel that the object covers.
    """
    fine = size * SAMPLES
    ticks = (torch.arange(fine) + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(-ticks, ticks, indexing="ij")
    half = math.tan(FIELD_OF_VIEW / 2)
    directions = torch.stack([x * half, y * half, -torch.ones_like(x)], dim=-1).reshape(-1, 3)
    directions = F.normalize(directions @ poses[:, :, :3].transpose(1, 2), dim=-1)
    origins = poses[:, None, :, 3].expand_as(directions)
    colors, hits = _trace(scene, origins.reshape(-1, 3), directions.reshape(-1, 3))
    images = colors.reshape(-1, fine, fine, 3).permute(0, 3, 1, 2)
    masks = hits.reshape(-1, 1, fine, fine).float()
    return F.avg_pool2d(images, SAMPLES).clamp(0, 1), F.avg_pool2d(masks, SAMPLES)


@torch.no_grad()
def seen_points(
    scene: Scene, poses: Float[Tensor, "views 3 4"], rays: int, generator: torch.Generator
) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "points 3"]]:
    """Points of the surfaces that cameras see, as a reconstruction of photographs finds some of them.

    Args:
        scene: what there is to see.
        poses: camera-to-world, see `look_at_pose`.
        rays: through random places of each camera's image; those that meet a surface give a point each.
        generator: draws the places.

    Returns:
        Places, and colours in 0..1.
    """
    half = math.tan(FIELD_OF_VIEW / 2)
    places = (torch.rand(len(poses), rays, 2, generator=generator) * 2 - 1) * half
    directions = torch.cat([places, -torch.ones_like(places[..., :1])], dim=-1)
    directions = F.normalize(directions @ poses[:, :, :3].transpose(1, 2), dim=-1).reshape(-1, 3)
    origins = poses[:, None, :, 3].expand(-1, rays, 3).reshape(-1, 3)
    distances = [_intersect(scene, origins, directions)[0], _intersect_stones(scene, origins, directions)[0]]
    nearest = torch.stack([*distances, _to_floor(origins, directions)]).amin(dim=0)
    points = origins + nearest[:, None] * directions
    near = points.norm(dim=1) < FLOOR_FADE[1]  # beyond, and in the sky, the horizon shows; infinite is not near
    colors, _ = _trace(scene, origins[near], directions[near])
    return points[near], colors.clamp(0, 1)


def _to_floor(origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]) -> Float[Tensor, " rays"]:
    """The distance to the floor, infinite where a ray does not go down."""
    return torch.where(directions[:, 2] < -1e-6, -origins[:, 2] / directions[:, 2], math.inf)


def _trace(
    scene: Scene, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> tuple[Float[Tensor, "rays 3"], Bool[Tensor, " rays"]]:
    """The colour of each ray, and whether it hits the object."""
    colors = _background(scene, directions)
    distance, normal = _intersect(scene, origins, directions)
    stone_distance, stone_normal = _intersect_stones(scene, origins, directions)
    stone = stone_distance < distance
    hit = distance.isfinite() & ~stone
    to_floor = _to_floor(origins, directions)
    floor = ~hit & ~stone & to_floor.isfinite()

    light = _light_axis(scene)
    position = origins[floor] + to_floor[floor, None] * directions[floor]
    radius = position[:, :2].norm(dim=1)
    near, far = FLOOR_FADE
    fade = ((radius - near) / (far - near)).clamp(0, 1)[:, None]
    fade = fade * fade * (3 - 2 * fade)
    lit = torch.ones(len(position))
    close = radius < near
    lit[close] = _visible_light(scene, position[close])
    # Where the object hides the sky, near its foot, the floor is darker.
    contact = 1 - 0.35 * torch.exp(-((radius / (0.55 * scene.size)).clamp(min=0.6) - 0.6) * 3)
    shade = (0.45 * contact + 0.55 * lit)[:, None]
    colors[floor] = (1 - fade) * shade * _floor_color(scene, position) + fade * _horizon(scene)

    base = torch.tensor(COLORS[scene.color]) + torch.tensor(scene.tint)
    shade = _lambert(normal[hit], light)
    if scene.detail is not None:
        shade = shade * _pattern(scene, scene.detail, origins[hit] + distance[hit, None] * directions[hit])
    colors[hit] = (base * shade[:, None]).clamp(0, 1)
    lit = _visible_light(scene, origins[stone] + stone_distance[stone, None] * directions[stone])
    colors[stone] = torch.tensor(STONE_COLOR) * _lambert(stone_normal[stone], light, lit)[:, None]
    return colors, hit


def _lambert(
    normal: Float[Tensor, "points 3"], light: Float[Tensor, 3], lit: Float[Tensor, " points"] | float = 1.0
) -> Float[Tensor, " points"]:
    """The share of its colour that a surface shows: ambient light, more from above, and a diffuse part."""
    return 0.54 + 0.10 * normal[:, 2] + 0.42 * lit * (normal @ light).clamp(min=0)


def _pattern(scene: Scene, detail: Detail, position: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
    """The factor of the object's colour at each point of its surface."""
    height = position[:, 2] / scene.size
    turn = (torch.atan2(position[:, 1], position[:, 0]) - scene.heading) / (2 * math.pi)
    rows, columns = (
        count * value + phase for count, value, phase in zip(detail.count, (height, turn), detail.phase, strict=True)
    )
    if detail.pattern == "bands":
        marked = rows % 1 < 0.5
    elif detail.pattern == "stripes":
        marked = columns % 1 < 0.5
    else:
        marked = ((rows % 1 - 0.5) / 0.36).square() + ((columns % 1 - 0.5) / 0.32).square() < 1
    return torch.where(marked, detail.shade, 1.0)


def _intersect_stones(
    scene: Scene, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> tuple[Float[Tensor, " rays"], Float[Tensor, "rays 3"]]:
    """The distance to the nearest stone, half a ball on the floor, infinite where there is none; and its normal."""
    distance, normal = origins.new_full(origins.shape[:1], math.inf), torch.zeros_like(origins)
    for x, y, radius in () if scene.detail is None else scene.detail.stones:
        offset = origins - torch.tensor([x, y, 0.0])
        found = _first((offset * directions).sum(dim=1), offset.square().sum(dim=1) - radius**2)
        found = torch.where(origins[:, 2] + found * directions[:, 2] >= 0, found, math.inf)
        nearer = found < distance
        normal[nearer] = ((offset + found[:, None] * directions) / radius)[nearer]
        distance = torch.minimum(distance, found)
    return distance, normal


def _light_axis(scene: Scene) -> Float[Tensor, 3]:
    """The direction towards the light."""
    azimuth, elevation = scene.light_azimuth, scene.light_elevation
    return torch.tensor(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )


def _visible_light(scene: Scene, position: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
    """How much of the light each point of the floor sees, in 0..1."""
    light = _light_axis(scene)
    side = F.normalize(torch.linalg.cross(light, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    up = torch.linalg.cross(side, light)
    seen = torch.zeros(len(position))
    for index in range(SHADOW_RAYS):
        # A sunflower's spiral covers the disc evenly.
        radius, angle = math.sqrt((index + 0.5) / SHADOW_RAYS) * LIGHT_RADIUS, 2.39996 * index
        direction = F.normalize(light + radius * (math.cos(angle) * side + math.sin(angle) * up), dim=0)
        distance, _ = _intersect(scene, position, direction.expand_as(position))
        seen += ~distance.isfinite()
    return seen / SHADOW_RAYS


def _horizon(scene: Scene) -> Float[Tensor, 3]:
    return torch.tensor([0.80, 0.88, 0.96] if scene.sky else [0.88, 0.87, 0.85])


def _background(scene: Scene, directions: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 3"]:
    horizon = _horizon(scene)
    if not scene.sky:
        return horizon.expand_as(directions).clone()
    height = (directions[:, 2:] / 0.6).clamp(0, 1)
    return (1 - height) * horizon + height * torch.tensor([0.35, 0.58, 0.92])


def _floor_color(scene: Scene, position: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
    """The floor's own colour, before shading."""
    cos, sin = math.cos(scene.floor_heading), math.sin(scene.floor_heading)
    x = cos * position[:, 0] + sin * position[:, 1]
    y = cos * position[:, 1] - sin * position[:, 0]
    shade = 1 + scene.floor_shade
    if scene.floor == "gray":
        return (shade * torch.tensor([0.58, 0.58, 0.60])).expand(len(x), 3)
    if scene.floor == "checkered":
        odd = ((x / 0.7).floor() + (y / 0.7).floor()) % 2
        return (shade * (0.34 + 0.50 * odd))[:, None].expand(-1, 3)
    plank = (y / 0.45).floor()
    tone = 0.5 + 0.5 * torch.sin(plank * 12.9898 + 1.0)  # a tone for each plank
    grain = torch.sin(1.7 * x + 9 * tone + 1.5 * torch.sin(9 * y + 6 * tone))
    seam = torch.exp(-(((y / 0.45 - plank) - 0.5).abs() - 0.5).square() / 0.004)
    brightness = shade * (0.86 + 0.14 * tone + 0.05 * grain) * (1 - 0.25 * seam)
    return brightness[:, None] * torch.tensor([0.72, 0.47, 0.26])


def _intersect(
    scene: Scene, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> tuple[Float[Tensor, " rays"], Float[Tensor, "rays 3"]]:
    """The distance to the object, infinite where a ray misses it, and the outward normal there."""
    cos, sin = math.cos(scene.heading), math.sin(scene.heading)
    to_world = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    shape = {"cube": _cube, "sphere": _sphere, "cylinder": _cylinder, "cone": _cone}[scene.shape]
    # In the object's own frame it stands on the floor, at its usual size.
    distance, normal = shape(origins @ to_world / scene.size, directions @ to_world)
    return distance * scene.size, normal @ to_world.T


def _sphere(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    radius = 0.58
    offset = origins - torch.tensor([0.0, 0.0, radius])
    along = (offset * directions).sum(dim=1)
    distance = _first(along, offset.square().sum(dim=1) - radius**2)
    return distance, F.normalize(offset + distance[:, None] * directions, dim=1)


def _cube(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    half = 0.47
    offset = origins - torch.tensor([0.0, 0.0, half])
    inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    one, other = (-half - offset) * inverse, (half - offset) * inverse
    enter, axis = torch.minimum(one, other).max(dim=1)
    leave = torch.maximum(one, other).amin(dim=1)
    distance = torch.where((enter < leave) & (enter > 1e-4), enter, math.inf)
    normal = F.one_hot(axis, 3) * -directions.sign()
    return distance, normal


def _cylinder(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    radius, height = 0.46, 1.05
    a = directions[:, :2].square().sum(dim=1).clamp(min=1e-9)
    along = (origins[:, :2] * directions[:, :2]).sum(dim=1) / a
    side = _first(along, (origins[:, :2].square().sum(dim=1) - radius**2) / a)
    z = origins[:, 2] + side * directions[:, 2]
    side = torch.where((z >= 0) & (z <= height), side, math.inf)
    top = _disc(origins, directions, height, radius)
    point = origins + side[:, None] * directions
    outward = F.normalize(point * torch.tensor([1.0, 1.0, 0.0]), dim=1)
    normal = torch.where((top < side)[:, None], torch.tensor([0.0, 0.0, 1.0]), outward)
    return torch.minimum(side, top), normal


def _cone(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    radius, height = 0.60, 1.20
    slope = radius / height
    # |x, y| = slope * (height - z)
    metric = torch.tensor([1.0, 1.0, -(slope**2)])
    offset = origins - torch.tensor([0.0, 0.0, height])
    a = (directions.square() * metric).sum(dim=1)
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b = (offset * directions * metric).sum(dim=1) / a
    c = (offset.square() * metric).sum(dim=1) / a
    root = (b * b - c).clamp(min=0).sqrt()
    distance = torch.full_like(a, math.inf)
    for candidate in (-b - root, -b + root):
        z = origins[:, 2] + candidate * directions[:, 2]
        valid = (b * b >= c) & (candidate > 1e-4) & (z >= 0) & (z <= height)
        distance = torch.where(valid, torch.minimum(distance, candidate), distance)
    point = offset + distance[:, None] * directions
    normal = F.normalize(point * metric, dim=1)
    return distance, normal


def _first(along: Tensor, rest: Tensor) -> Tensor:
    """The smaller root of t^2 + 2 along t + rest = 0 if it is real and in front, else infinity."""
    discriminant = along.square() - rest
    root = -along - discriminant.clamp(min=0).sqrt()
    return torch.where((discriminant >= 0) & (root > 1e-4), root, math.inf)


def _disc(origins: Tensor, directions: Tensor, height: float, radius: float) -> Tensor:
    """The distance to a horizontal disc around the vertical axis."""
    distance = (height - origins[:, 2]) / torch.where(directions[:, 2].abs() < 1e-9, 1e-9, directions[:, 2])
    point = origins[:, :2] + distance[:, None] * directions[:, :2]
    return torch.where((distance > 1e-4) & (point.square().sum(dim=1) <= radius**2), distance, math.inf)
