"""Real spherical harmonics, with which Gaussians have one colour from each direction."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

GREATEST_DEGREE = 4


def spherical_harmonics(
    degree: int, directions: Float[Tensor, "*batch 3"], coefficients: Float[Tensor, "*batch bases channels"]
) -> Float[Tensor, "*batch channels"]:
    """The function that has these coefficients, in these directions; differentiable in both.

    The bases are in the order and with the signs of 3D Gaussian splatting: degrees n from 0, orders m from -n to n, and
    the Condon-Shortley phase (-1)^m (Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013).

    Args:
        degree: the greatest n that is used, 0 to 4.
        directions: of any length but 0.
        coefficients: at least (degree + 1)² of them; those beyond are left out.
    """
    bases = spherical_harmonic_bases(degree, directions)
    return (bases[..., None, :] @ coefficients[..., : bases.shape[-1], :])[..., 0, :]


def spherical_harmonic_bases(degree: int, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch bases"]:
    """The (degree + 1)² bases in these directions: see `spherical_harmonics`.

    With r_m + i s_m = (x + i y)^m, the basis of n and m is N_nm P_nm(z) r_m, or s_|m| for a negative m. P_nm is the
    Legendre function of z without its factor (1 - z²)^(m/2), which is in r_m and s_m, and N_nm normalises.
    """
    if not 0 <= degree <= GREATEST_DEGREE:
        raise ValueError(f"spherical harmonics of degree {degree}: from 0 to {GREATEST_DEGREE} there are")
    x, y, z = F.normalize(directions, dim=-1).unbind(-1)
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    for m in range(degree):
        cosines, sines = [*cosines, x * cosines[m] - y * sines[m]], [*sines, x * sines[m] + y * cosines[m]]
    # Legendre's recurrences: P_mm = (-1)^m (2m-1)!!,  (n-m) P_nm = (2n-1) z P_(n-1)m - (n+m-1) P_(n-2)m.
    legendre: dict[tuple[int, int], Tensor] = {}
    for m in range(degree + 1):
        legendre[m, m] = torch.full_like(z, (-1) ** m * math.prod(range(1, 2 * m, 2)))
        for n in range(m + 1, degree + 1):
            before = legendre[n - 2, m] if n > m + 1 else 0
            legendre[n, m] = ((2 * n - 1) * z * legendre[n - 1, m] - (n + m - 1) * before) / (n - m)
    bases = []
    for n in range(degree + 1):
        for m in range(-n, n + 1):
            norm = (2 * n + 1) / (4 * math.pi) * math.factorial(n - abs(m)) / math.factorial(n + abs(m))
            around = cosines[m] if m >= 0 else sines[-m]
            bases.append(math.sqrt(norm * (2 if m else 1)) * legendre[n, abs(m)] * around)
    return torch.stack(bases, dim=-1)
