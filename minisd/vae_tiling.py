"""Decoding of large pictures in strips of rows, exactly: no seams, no shifts of colour, a fraction of the memory.

A tile cannot be decoded by itself: the attention of the mid block and every GroupNorm see the whole picture. So the
lowest resolution is computed whole, and above it each norm first gathers its statistics over all strips. What that
costs is that a convolution between two norms is done twice, and the one after an upsampling three times.

Strips are let go as soon as those of the next block have come by: so there is never more than about one tensor of the
size that the picture has at the widest place, 128 channels in SD1.5.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.fast.phases import Phases
from minisd.layers import ResBlock
from minisd.vae import VAE, Decoder, Stage

STRIP = 1 << 16                                   # pixels of a strip, as near as whole rows come
SLAB = 2                                          # strips in one piece of memory: large pieces go back to the system
NEAR = 2                                          # rows above and below that a residual block sees


@dataclass(frozen=True)
class Rows:
    """A picture whose rows are computed when they are asked for."""

    height: int
    width: int
    read: Callable[[int, int], Tensor]            # (start, stop) -> [1, c, stop - start, width]
    forget: Callable[[int], None]                 # rows above this one are not asked for again

    def strips(self, pixels: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of strips that cover the picture."""
        step = self.step(pixels)
        return ((start, min(start + step, self.height)) for start in range(0, self.height, step))

    def step(self, pixels: int) -> int:
        """Rows of a strip."""
        return max(pixels // self.width, 1)


def decode_in_strips(vae: VAE, z: Tensor, pixels: int = STRIP) -> Tensor:
    """`vae.decode` but for rounding, picture after picture: [b, latent_channels, h, w] -> [b, 3, 8h, 8w]."""
    return torch.cat([_decode_one(vae.decoder, one, pixels) for one in z.split(1)])


def _decode_one(decoder: Decoder, z: Tensor, pixels: int) -> Tensor:
    x = decoder.mid(decoder.conv_in(decoder.latents(z)))
    rows = those_of(x, 0, x.shape[2])
    for stage in cast(Iterable[Stage], decoder.up):
        for block in cast(Iterable[ResBlock], stage.res):
            rows = kept(through_block(block, rows, pixels), pixels)
        if stage.upsample is not None:
            rows = enlarged(stage.upsample, rows)
    rows = convolved(decoder.conv_out, passed(normed(decoder.norm_out, rows, pixels), rows))
    return kept(rows, pixels).read(0, rows.height)


def those_of(x: Tensor, first: int, height: int) -> Rows:
    """A part of a picture that is there already, which begins at row `first` of all."""
    return Rows(height, x.shape[3], lambda start, stop: x[:, :, start - first:stop - first], lambda row: None)


def kept(rows: Rows, pixels: int) -> Rows:
    """All rows computed once and for all, while those they come from are let go."""
    parts = [(start, gathered(rows, start, stop, pixels)) for start, stop in rows.strips(SLAB * pixels)]

    def read(start: int, stop: int) -> Tensor:
        found = [part[:, :, max(start - first, 0):stop - first] for first, part in parts
                 if first < stop and start < first + part.shape[2]]
        return torch.cat(found, dim=2)

    def forget(row: int) -> None:
        parts[:] = [(first, part) for first, part in parts if first + part.shape[2] > row]

    return Rows(rows.height, rows.width, read, forget)


def gathered(rows: Rows, start: int, stop: int, pixels: int) -> Tensor:
    """Some strips in one tensor, in channels_last; the rows they come from are let go."""
    slab = torch.empty(0)
    for above in range(start, stop, rows.step(pixels)):
        below = min(above + rows.step(pixels), stop)
        strip = rows.read(above, below)
        if above == start:
            slab = strip.new_empty(1, stop - start, rows.width, strip.shape[1]).permute(0, 3, 1, 2)
        slab[:, :, above - start:below - start] = strip
        rows.forget(below)
    return slab


def through_block(block: ResBlock, rows: Rows, pixels: int) -> Rows:
    """A residual block."""
    first = normed(block.norm1, rows, pixels)
    second = normed(block.norm2, convolved(block.conv1, passed(first, rows)), pixels)

    def read(start: int, stop: int) -> Tensor:
        above = max(start - NEAR, 0)
        near = those_of(rows.read(above, min(stop + NEAR, rows.height)), above, rows.height)
        h = convolved(block.conv2, passed(second, convolved(block.conv1, passed(first, near))))
        return block.skip(near.read(start, stop)) + h.read(start, stop)

    return Rows(rows.height, rows.width, read, lambda row: rows.forget(row - NEAR))


def convolved(conv: nn.Conv2d, rows: Rows) -> Rows:
    """A 3x3 convolution."""
    def read(start: int, stop: int) -> Tensor:
        return F.conv2d(bordered(rows, start, stop), conv.weight, conv.bias, padding=(0, 1))

    return Rows(rows.height, rows.width, read, lambda row: rows.forget(row - 1))


def enlarged(conv: nn.Conv2d, rows: Rows) -> Rows:
    """Every pixel four times, and then a 3x3 convolution."""
    phases = Phases(conv)

    def read(start: int, stop: int) -> Tensor:
        x = phases(bordered(rows, start // 2, (stop + 1) // 2))
        return x[:, :, start % 2:start % 2 + stop - start]

    return Rows(2 * rows.height, 2 * rows.width, read, lambda row: rows.forget(row // 2 - 1))


def bordered(rows: Rows, start: int, stop: int) -> Tensor:
    """Rows with one more above and below, which are zeros beyond the picture."""
    x, above, below = rows.read(max(start - 1, 0), min(stop + 1, rows.height)), start == 0, stop == rows.height
    return F.pad(x, (0, 0, int(above), int(below))) if above or below else x      # by nothing it would be copied


def passed(change: Callable[[Tensor], Tensor], rows: Rows) -> Rows:
    """Rows of which each is changed by itself."""
    return Rows(rows.height, rows.width, lambda start, stop: change(rows.read(start, stop)), rows.forget)


def normed(norm: nn.GroupNorm, rows: Rows, pixels: int) -> Callable[[Tensor], Tensor]:
    """GroupNorm by the statistics of the whole picture, then SiLU.

    A norm whose statistics are given is what PyTorch calls batch normalisation in evaluation.
    """
    mean, var = statistics(norm, rows, pixels)
    weight, bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)
    return lambda x: F.silu(F.batch_norm(x, mean, var, weight, bias, eps=norm.eps), inplace=True)


def statistics(norm: nn.GroupNorm, rows: Rows, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of its group over all rows, for every channel: [c] each, at least float32.

    Strips are joined by the formula of Chan et al.: sums of squares would lose variances small beside the mean.
    """
    count, mean, var = 0, torch.zeros(()), torch.zeros(())
    for start, stop in rows.strips(pixels):
        x = rows.read(start, stop)
        exact = torch.promote_types(x.dtype, torch.float32)
        ones = x.new_ones(x.shape[1], dtype=exact)   # on a CPU, statistics are of the weights' type
        x = x.to(x.dtype if x.device.type == "cpu" else exact, memory_format=torch.channels_last)
        groups, n = norm.num_groups, x.shape[2] * x.shape[3]
        _, mean_here, rstd = torch.native_group_norm(x, ones, ones, 1, x.shape[1], n, groups, norm.eps)  # [1, groups]
        part = n / (count + n)
        step = mean_here.double() - mean
        mean = mean + part * step
        var = (1 - part) * var + part * (rstd.double() ** -2 - norm.eps) + part * (1 - part) * step.square()
        count += n
    channels = norm.num_channels // norm.num_groups
    return mean.to(exact).flatten().repeat_interleave(channels), var.to(exact).flatten().repeat_interleave(channels)
