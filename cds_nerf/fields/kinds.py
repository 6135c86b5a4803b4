"""The kinds of fields: which of them a nerfstudio model is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel

from cds_nerf.fields.field import Field
from cds_nerf.fields.ray_field import RayField
from cds_nerf.fields.splat_field import SplatField

KINDS: dict[type[Model], Callable[[Any, int], Field]] = {
    Model: RayField,  # type: ignore[type-abstract]
    SplatfactoModel: lambda model, rays_per_chunk: SplatField(model),
}
"""What makes a field of a model, and of how many rays are to be rendered at a time, where it renders rays."""


def field_of(model: Model, rays_per_chunk: int) -> Field:
    """A model as a field that can be edited: of the kind of its own class, or else of the nearest that it derives from.

    Args:
        model: of any of nerfstudio's methods.
        rays_per_chunk: rays rendered at a time, where it renders rays.
    """
    kind = next(KINDS[base] for base in type(model).__mro__ if base in KINDS)
    return kind(model, rays_per_chunk)
