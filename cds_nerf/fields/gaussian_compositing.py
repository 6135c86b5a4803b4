"""Gaussians in an image, composited front to back, as gsplat's CUDA kernels do it, in torch alone.

The image is cut into blocks of 4 × 4 pixels. Each Gaussian is paired with the blocks that it may cover, the pairs are
sorted by block and depth, and everything after that happens on arrays of 16 pixels a pair: with α the Gaussian's alpha
at a pixel, the transmittance before it is exp(Σ log(1 - α)) over those before it, one cumulative sum for all pixels.
Time grows with the pairs. So does the memory, by a few numbers a pair: what takes 16 numbers each is made anew in the
backward pass, a bounded number of pairs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from cds_nerf.fields.gaussian_projection import LEAST_ALPHA

BLOCK = 4
"""Side, in pixels, of the blocks."""
PAIRS_AT_A_TIME = 2**14
"""Keeps what is made of them within a processor's cache."""
GREATEST_ALPHA = 0.999
QUADRATIC_FORM = (0.5, 1, 0.5)
"""What a conic's xx, xy and yy stand with in half of the squared Mahalanobis distance."""
LEAST_TRANSMITTANCE = 1e-4
"""The Gaussian that would leave a pixel no more than this, and all behind it, are left out of the pixel."""


def composite(
    means: Float[Tensor, "gaussians 2"],
    conics: Float[Tensor, "gaussians 3"],
    colors: Float[Tensor, "gaussians channels"],
    opacities: Float[Tensor, " gaussians"],
    depths: Float[Tensor, " gaussians"],
    radii: Int[Tensor, "gaussians 2"],
    width: int,
    height: int,
    tile_size: int,
    absolute_gradients: Float[Tensor, "gaussians 2"] | None = None,
) -> tuple[Float[Tensor, "height width channels"], Float[Tensor, "height width 1"]]:
    """Composite Gaussians over black; differentiable, once, in the first four arguments.

    Args:
        means: in pixels; the first pixel's centre is at (0.5, 0.5).
        conics: inverse covariances: xx, xy, yy.
        colors: of any number of channels.
        opacities: 0 to 1.
        depths: those that are less are in front.
        radii: half the sides of the boxes around the means; Gaussians with a radius of 0 are left out.
        width: of the image.
        height: of the image.
        tile_size: a Gaussian is drawn in all square tiles of this side that its box touches, as far as its alpha is
            at least 1/255.
        absolute_gradients: what the backward pass writes over with the sums, over pixels, of the absolute values of
            the gradients with respect to the means.

    Returns:
        The colours, and the alphas.
    """
    ones = torch.ones_like(colors[:, :1])  # composited as a colour, this is the alpha
    with torch.no_grad():
        pairs = _pair_with_blocks(means, conics, opacities, depths, radii, width, height, tile_size)
    channels = _Composite.apply(means, conics, torch.cat([colors, ones], dim=-1), opacities, pairs, absolute_gradients)
    return channels[..., :-1], channels[..., -1:]


@dataclass(frozen=True)
class _Pairs:
    """Which Gaussian may cover which block, block by block and front to back."""

    gaussians: Int[Tensor, " pairs"]
    blocks: Int[Tensor, " pairs"]
    starts: Int[Tensor, " blocks+1"]
    """Each block's first pair; and how many pairs there are."""
    drawn: Int[Tensor, " drawn"]
    """Gaussians, all that have pairs among them."""
    by_gaussian: Int[Tensor, " pairs"]
    """The pairs, one Gaussian after the other, in the order of `drawn`."""
    drawn_starts: Int[Tensor, " drawn"]
    """In `by_gaussian`, each Gaussian's first pair."""
    width: int
    height: int
    side: int
    """Of a block."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.side), -(-self.width // self.side)

    def centres(self, blocks: Int[Tensor, " blocks"], like: Tensor) -> Float[Tensor, "blocks 2"]:
        """Of blocks, in pixels."""
        columns = self.grid[1]
        rows = torch.div(blocks, columns, rounding_mode="floor")
        return torch.stack([blocks - rows * columns, rows], dim=-1).to(like) * self.side + self.side / 2

    def offsets(self, like: Tensor) -> Float[Tensor, "pixels 2"]:
        """Of a block's pixels from its centre, row by row."""
        along = torch.arange(self.side, device=like.device, dtype=like.dtype) - (self.side - 1) / 2
        return torch.cartesian_prod(along, along).flip(-1)

    def to_image(self, values: Float[Tensor, "blocks channels pixels"]) -> Float[Tensor, "height width channels"]:
        """Blocks, put together."""
        rows, columns = self.grid
        image = values.reshape(rows, columns, -1, self.side, self.side).permute(0, 3, 1, 4, 2)
        return image.reshape(rows * self.side, columns * self.side, -1)[: self.height, : self.width]

    def to_blocks(self, image: Float[Tensor, "height width channels"]) -> Float[Tensor, "blocks channels pixels"]:
        """An image, cut into blocks; 0 beyond its sides."""
        rows, columns = self.grid
        image = F.pad(image, (0, 0, 0, columns * self.side - self.width, 0, rows * self.side - self.height))
        image = image.reshape(rows, self.side, columns, self.side, -1).permute(0, 2, 4, 1, 3)
        return image.reshape(rows * columns, -1, self.side**2)

    def keep(self, wanted: Bool[Tensor, " pairs"]) -> _Pairs:
        """Only the pairs that are wanted."""
        blocks = self.blocks[wanted]
        is_wanted = wanted[self.by_gaussian]
        counts = _segment_sums(wanted[:, None].float(), self.by_gaussian, self.drawn_starts)[:, 0].long()
        return replace(
            self,
            gaussians=self.gaussians[wanted],
            blocks=blocks,
            starts=F.pad(torch.bincount(blocks, minlength=len(self.starts) - 1).cumsum(0), (1, 0)),
            by_gaussian=(wanted.cumsum(0) - 1)[self.by_gaussian[is_wanted]],
            drawn_starts=counts.cumsum(0) - counts,
        )

    def runs(self) -> Iterator[tuple[slice, slice]]:
        """Blocks, and their pairs, of about `PAIRS_AT_A_TIME`."""
        last = len(self.starts) - 1
        bounds = torch.arange(0, len(self.gaussians) + 1, PAIRS_AT_A_TIME, device=self.starts.device)
        cuts = torch.searchsorted(self.starts, bounds, right=True).clamp_max(last).tolist()
        cuts = sorted({0, *cuts, last})
        starts = self.starts[cuts].tolist()
        for index in range(len(cuts) - 1):
            yield slice(cuts[index], cuts[index + 1]), slice(starts[index], starts[index + 1])


def _pair_with_blocks(
    means: Tensor,
    conics: Tensor,
    opacities: Tensor,
    depths: Tensor,
    radii: Tensor,
    width: int,
    height: int,
    tile_size: int,
) -> _Pairs:
    side = gcd(tile_size, BLOCK)
    size = torch.tensor([width, height], device=means.device)
    grid = -(-size // side)
    # The tiles that the box touches, in blocks.
    tiles = -(-size // tile_size)
    per_tile = tile_size // side
    first = ((means - radii) / tile_size).floor().clamp_min(0).minimum(tiles).long() * per_tile
    end = ((means + radii) / tile_size).ceil().clamp_min(0).minimum(tiles).long() * per_tile
    # Among them, those that have a pixel at which alpha may be 1/255; a little more, for rounding.
    determinant = conics[:, 0] * conics[:, 2] - conics[:, 1].square()
    variances = conics[:, [2, 0]] / determinant[:, None]
    reach = (2 * (opacities / LEAST_ALPHA).log().clamp_min(0)[:, None] * variances).sqrt() * 1.001 + 0.01
    first = first.maximum(((means - reach - 0.5) / side).floor().clamp_min(0).minimum(grid).long())
    end = end.minimum(((means + reach - 0.5) / side).floor().add(1).clamp_min(0).minimum(grid).long())
    columns, rows = (end - first).clamp_min(0).unbind(-1)
    counts = torch.where((radii > 0).all(-1) & (opacities >= LEAST_ALPHA), columns * rows, 0)

    # From front to back, so that a stable sort by block keeps that order within each.
    drawn = depths.sort(stable=True).indices
    drawn = drawn[counts[drawn] > 0]
    counts = counts[drawn]
    starts = counts.cumsum(0) - counts
    gaussians = drawn.repeat_interleave(counts)
    within = torch.arange(len(gaussians), device=means.device) - starts.repeat_interleave(counts)
    row = torch.div(within, columns[gaussians], rounding_mode="floor")
    column = within - row * columns[gaussians]
    blocks = (first[gaussians, 1] + row) * grid[0] + first[gaussians, 0] + column
    blocks, order = blocks.sort(stable=True)
    by_gaussian = torch.empty_like(order)
    by_gaussian[order] = torch.arange(len(order), device=means.device)
    return _Pairs(
        gaussians=gaussians[order],
        blocks=blocks,
        starts=F.pad(torch.bincount(blocks, minlength=int(grid.prod())).cumsum(0), (1, 0)),
        drawn=drawn,
        by_gaussian=by_gaussian,
        drawn_starts=starts,
        width=width,
        height=height,
        side=side,
    )


class _Run:
    """All pairs of some blocks, at the blocks' pixels."""

    def __init__(
        self, pairs: _Pairs, blocks: slice, members: slice, means: Tensor, conics: Tensor, opacities: Tensor
    ) -> None:
        self.gaussians = pairs.gaussians[members]
        self.block = pairs.blocks[members] - blocks.start
        self.starts = pairs.starts[blocks.start : blocks.stop + 1] - members.start
        self.offset = means.index_select(0, self.gaussians) - pairs.centres(pairs.blocks[members], means)
        self.conic = conics.index_select(0, self.gaussians)
        self.slope = _times(self.conic, self.offset)
        # Half of the squared Mahalanobis distance is a polynomial of a pixel's offset from its block's centre. It is
        # negative only by rounding, which makes gsplat, where it rounds so, leave the pixel out.
        constant = (self.slope * self.offset).sum(-1, keepdim=True) / 2
        squares = self.conic * self.conic.new_tensor(QUADRATIC_FORM)
        polynomial = torch.cat([constant, -self.slope, squares], dim=-1)
        self.monomials = _monomials(pairs.offsets(means))
        alpha = (polynomial @ self.monomials).clamp_min_(0).neg_().exp_()
        alpha *= opacities.index_select(0, self.gaussians)[:, None]
        self.is_held = alpha > GREATEST_ALPHA
        alpha = torch.where(alpha >= LEAST_ALPHA, alpha.clamp_max(GREATEST_ALPHA), 0)
        passing = 1 - alpha
        after = self.sums(passing.log()).exp_()
        self.alpha = torch.where(after > LEAST_TRANSMITTANCE, alpha, 0)
        """0 where the Gaussian does not count."""
        self.before = after.div_(passing)
        """The transmittance before the Gaussian, where it counts."""
        self.is_met = ((alpha > 0) & (self.before > LEAST_TRANSMITTANCE)).any(1)
        """Whether the Gaussian counts at a pixel, or is the one after which a pixel takes no more."""

    def sums(self, values: Float[Tensor, "pairs pixels"]) -> Float[Tensor, "pairs pixels"]:
        """The sums of each pair's value and of those before it in its block.

        Differences of one sum through all blocks, which must be in double precision for that.
        """
        running = F.pad(values.mT.contiguous().cumsum(1, dtype=torch.float64), (1, 0))
        before_block = running[:, self.starts[:-1]].index_select(1, self.block)
        return (running[:, 1:] - before_block).to(values.dtype).mT.contiguous()

    def totals(self, values: Float[Tensor, "pairs ..."]) -> Float[Tensor, "blocks ..."]:
        """The sum over each block."""
        return _segment_sums(values, torch.arange(len(values), device=values.device), self.starts[:-1])

    def of_pairs(self, values: Float[Tensor, "blocks ..."]) -> Float[Tensor, "pairs ..."]:
        """To each pair what is its block's."""
        return values.index_select(0, self.block)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        pairs: _Pairs,
        absolute_gradients: Tensor | None,
    ) -> Tensor:
        pixels = means.new_empty(len(pairs.starts) - 1, colors.shape[1], pairs.side**2)
        is_met = torch.empty_like(pairs.blocks, dtype=torch.bool)
        for blocks, members in pairs.runs():
            run = _Run(pairs, blocks, members, means, conics, opacities)
            weights = (run.alpha * run.before)[:, None, :]
            pixels[blocks] = run.totals(weights * colors.index_select(0, run.gaussians)[:, :, None])
            is_met[members] = run.is_met
        ctx.save_for_backward(means, conics, colors, opacities)
        ctx.pairs, ctx.absolute_gradients = pairs.keep(is_met), absolute_gradients
        return pairs.to_image(pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, image_gradient: Tensor) -> tuple[Tensor | None, ...]:
        means, conics, colors, opacities = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        pixel_gradients = pairs.to_blocks(image_gradient)
        of_pairs = [
            _pair_gradients(
                _Run(pairs, blocks, members, means, conics, opacities),
                colors,
                pixel_gradients[blocks],
                with_absolute=ctx.absolute_gradients is not None,
            )
            for blocks, members in pairs.runs()
        ]
        of_drawn = _segment_sums(torch.cat(of_pairs), pairs.by_gaussian, pairs.drawn_starts)
        gradients = means.new_zeros(len(means), of_drawn.shape[1]).index_copy_(0, pairs.drawn, of_drawn)
        mean_gradient, conic_gradient, log_gradient, absolute, color_gradient = gradients.split(
            [2, 3, 1, 2, colors.shape[1]], dim=-1
        )
        if ctx.absolute_gradients is not None:
            ctx.absolute_gradients.copy_(absolute)
        opacity_gradient = torch.where(opacities > 0, log_gradient[:, 0] / opacities, 0)
        return mean_gradient, conic_gradient, color_gradient, opacity_gradient, None, None


def _pair_gradients(
    run: _Run, colors: Tensor, pixel_gradients: Float[Tensor, "blocks channels pixels"], with_absolute: bool
) -> Float[Tensor, "pairs gradients"]:
    """With respect to the means, conics, opacities' logarithms, means in absolute values, and colours."""
    color = colors.index_select(0, run.gaussians)
    weights = run.alpha * run.before
    reaching = run.of_pairs(pixel_gradients)
    color_gradient = (reaching @ weights[:, :, None])[:, :, 0]
    # Along the image's gradient: what the Gaussian shows, and how much of what is behind it.
    shown = (color[:, None, :] @ reaching)[:, 0]
    contribution = weights * shown
    behind = run.of_pairs(run.totals(contribution)) - run.sums(contribution)
    alpha_gradient = shown * run.before - behind / (1 - run.alpha)
    exponent_gradient = torch.where(run.is_held, 0, alpha_gradient * run.alpha)

    total, first, second = (exponent_gradient @ run.monomials.mT).split([1, 2, 3], dim=-1)
    mean_gradient = _times(run.conic, first) - total * run.slope
    (x, y), (first_x, first_y) = run.offset.unbind(-1), first.unbind(-1)
    mixed = torch.stack([2 * x * first_x, x * first_y + y * first_x, 2 * y * first_y], dim=-1)
    products = torch.stack([x * x, x * y, y * y], dim=-1)
    conic_gradient = -run.conic.new_tensor(QUADRATIC_FORM) * (total * products - mixed + second)

    absolute = torch.zeros_like(mean_gradient)
    if with_absolute:
        slopes = run.slope[:, :, None] - run.conic[:, [[0, 1], [1, 2]]] @ run.monomials[1:3]
        absolute = (exponent_gradient[:, None, :] * slopes).abs().sum(-1)
    return torch.cat([mean_gradient, conic_gradient, total, absolute, color_gradient], dim=-1)


def _times(conic: Float[Tensor, "pairs 3"], vector: Float[Tensor, "pairs 2"]) -> Float[Tensor, "pairs 2"]:
    """The symmetric matrices times the vectors."""
    return conic[:, :2] * vector[:, :1] + conic[:, 1:] * vector[:, 1:]


def _monomials(offsets: Float[Tensor, "pixels 2"]) -> Float[Tensor, "6 pixels"]:
    """1, x, y, x², xy and y²."""
    x, y = offsets.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


def _segment_sums(
    values: Float[Tensor, "rows ..."], order: Int[Tensor, " rows"], starts: Int[Tensor, " segments"]
) -> Float[Tensor, "segments ..."]:
    """The rows in that order, summed from each start to the next: always in that order, on a GPU too."""
    return F.embedding_bag(order, values.flatten(1), starts, mode="sum").unflatten(1, values.shape[1:])
