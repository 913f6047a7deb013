"""Decoding of large pictures in strips of rows, exactly: no seams, no shifts of colour, a fraction of the memory.

A tile cannot be decoded by itself: the attention of the mid block and every GroupNorm see the whole picture. So the
lowest resolution is computed whole, and above it each norm first gathers its statistics over all strips. What that
costs is that a convolution between two norms is done twice, and the one after an upsampling four times.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.layers import ResBlock
from minisd.vae import VAE, Decoder, Stage

STRIP = 1 << 16                                   # pixels of a strip, as near as whole rows come


@dataclass(frozen=True)
class Rows:
    """A picture whose rows are computed when they are asked for: read(start, stop) -> [1, c, stop - start, width]."""

    height: int
    width: int
    read: Callable[[int, int], Tensor]

    def strips(self, pixels: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of strips that cover the picture."""
        step = max(pixels // self.width, 1)
        return ((start, min(start + step, self.height)) for start in range(0, self.height, step))


def decode_in_strips(vae: VAE, z: Tensor, pixels: int = STRIP) -> Tensor:
    """`vae.decode` but for rounding, picture after picture: [b, latent_channels, h, w] -> [b, 3, 8h, 8w]."""
    return torch.cat([_decode_one(vae.decoder, one, pixels) for one in z.split(1)])


def _decode_one(decoder: Decoder, z: Tensor, pixels: int) -> Tensor:
    x = decoder.mid(decoder.conv_in(decoder.latents(z)))
    rows = Rows(x.shape[2], x.shape[3], lambda start, stop: x[:, :, start:stop])
    for stage in cast(Iterable[Stage], decoder.up):
        for block in cast(Iterable[ResBlock], stage.res):
            rows = kept(through_block(block, rows, pixels), pixels)
        if stage.upsample is not None:
            rows = convolved(stage.upsample, doubled(rows))
    rows = convolved(decoder.conv_out, normed(decoder.norm_out, rows, pixels))
    return kept(rows, pixels).read(0, rows.height)


def kept(rows: Rows, pixels: int) -> Rows:
    """All rows computed once and for all."""
    whole = torch.empty(0)
    for start, stop in rows.strips(pixels):
        strip = rows.read(start, stop)
        if start == 0:                            # channels last, so that a strip of rows lies in one piece
            whole = strip.new_empty(1, rows.height, rows.width, strip.shape[1]).permute(0, 3, 1, 2)
        whole[:, :, start:stop] = strip
    return Rows(rows.height, rows.width, lambda start, stop: whole[:, :, start:stop])


def through_block(block: ResBlock, rows: Rows, pixels: int) -> Rows:
    """A residual block."""
    h = convolved(block.conv1, normed(block.norm1, rows, pixels))
    h = convolved(block.conv2, normed(block.norm2, h, pixels))
    return Rows(rows.height, rows.width, lambda start, stop: block.skip(rows.read(start, stop)) + h.read(start, stop))


def convolved(conv: nn.Conv2d, rows: Rows) -> Rows:
    """A 3x3 convolution: each strip needs a row more above and below, and zeros beyond the picture."""
    def read(start: int, stop: int) -> Tensor:
        x = rows.read(max(start - 1, 0), min(stop + 1, rows.height))
        x = F.pad(x, (0, 0, int(start == 0), int(stop == rows.height)))
        return F.conv2d(x, conv.weight, conv.bias, padding=(0, 1))

    return Rows(rows.height, rows.width, read)


def doubled(rows: Rows) -> Rows:
    """Every pixel four times, as by interpolate(scale_factor=2, mode="nearest")."""
    def read(start: int, stop: int) -> Tensor:
        x = F.interpolate(rows.read(start // 2, (stop + 1) // 2), scale_factor=2.0, mode="nearest")
        return x[:, :, start % 2:start % 2 + stop - start]

    return Rows(2 * rows.height, 2 * rows.width, read)


def normed(norm: nn.GroupNorm, rows: Rows, pixels: int) -> Rows:
    """GroupNorm by the statistics of the whole picture, then SiLU.

    A norm whose statistics are given is what PyTorch calls batch normalisation in evaluation.
    """
    mean, var = statistics(norm, rows, pixels)
    weight, bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)

    def read(start: int, stop: int) -> Tensor:
        return F.silu(F.batch_norm(rows.read(start, stop), mean, var, weight, bias, eps=norm.eps))

    return Rows(rows.height, rows.width, read)


def statistics(norm: nn.GroupNorm, rows: Rows, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of its group over all rows, for every channel: [c] each, at least float32.

    Strips are joined by the formula of Chan et al.: sums of squares would lose variances small beside the mean.
    """
    count, mean, var = 0, torch.zeros(()), torch.zeros(())
    for start, stop in rows.strips(pixels):
        x = rows.read(start, stop)
        x = x.to(torch.promote_types(x.dtype, torch.float32), memory_format=torch.channels_last)
        groups, n = norm.num_groups, x.shape[2] * x.shape[3]
        _, mean_here, rstd = torch.native_group_norm(x, None, None, 1, x.shape[1], n, groups, norm.eps)  # [1, groups]
        part = n / (count + n)
        step = mean_here.double() - mean
        mean = mean + part * step
        var = (1 - part) * var + part * (rstd.double() ** -2 - norm.eps) + part * (1 - part) * step.square()
        count += n
    channels = norm.num_channels // norm.num_groups
    return mean.to(x.dtype).flatten().repeat_interleave(channels), var.to(x.dtype).flatten().repeat_interleave(channels)
