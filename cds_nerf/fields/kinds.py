"""The kinds of fields: which of them a nerfstudio model is."""

from __future__ import annotations

from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel

from cds_nerf.fields.field import Field
from cds_nerf.fields.ray_field import RayField
from cds_nerf.fields.splat_field import SplatField


def field_of(model: Model, rays_per_chunk: int) -> Field:
    """A model as a field that can be edited.

    Args:
        model: of any method that renders rays, or splatfacto's.
        rays_per_chunk: rays rendered at a time, where it renders rays.
    """
    if isinstance(model, SplatfactoModel):
        return SplatField(model)
    return RayField(model, rays_per_chunk)
