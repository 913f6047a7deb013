"""A decoder that goes through large pictures strip by strip: half the memory, in no more time.

Each residual block makes one tensor, which holds first what is between its convolutions and then its result. Norms
gather their statistics over the whole picture first, as in `vae_tiling`, so that there are no seams.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from minisd import heap
from minisd.fast.onednn import inferring
from minisd.layers import ResBlock
from minisd.vae import Decoder, Stage
from minisd.vae_tiling import Rows, convolved, enlarged, gathered, normed, passed, those_of

LARGE = 1 << 17                                   # pixels of the picture: fewer are decoded whole, so many at once
STRIP = 1 << 13                                   # pixels at a time, of which a layer's fit a cache
WIDEST = 1 << 18                                  # pixels of a picture whose largest tensor may be there as a whole


class StripDecoder(Decoder):
    """The same but for rounding, in the memory of about two tensors of full size and of its last blocks' width.

    A picture of at most 512x512 pixels takes three: the one that is as wide as the blocks before is made once.
    """

    def forward(self, z: Tensor) -> Tensor:  # [b, latent_channels, h/8, w/8] -> [b, 3, h, w]
        pixels = self._pixels(z)
        if pixels * len(z) <= LARGE or torch.compiler.is_compiling() or not inferring():
            return super().forward(z)
        if pixels <= LARGE:
            return torch.cat([super(StripDecoder, self).forward(some) for some in z.split(LARGE // pixels)])
        return torch.cat([self._decode_one(one) for one in z.split(1)])

    def _pixels(self, z: Tensor) -> int:
        """Of each picture."""
        return z.shape[2] * z.shape[3] << 2 * (len(self.up) - 1)

    def _decode_one(self, z: Tensor) -> Tensor:
        """A large picture."""
        pixels = self._pixels(z)
        rows = of(self.mid(self.conv_in(self.latents(z))))
        for stage in cast(Iterable[Stage], self.up):
            heap.trim()                           # what smaller pictures have left, here and in the UNet
            for block in cast(Iterable[ResBlock], stage.res):
                rows = of(through_block(block, rows))
            if stage.upsample is not None:
                rows = enlarged(stage.upsample, rows)
                if rows.height * rows.width < pixels or pixels <= WIDEST:       # else it is computed three times
                    rows = of(gathered(rows, 0, rows.height, STRIP))
        rows = convolved(self.conv_out, passed(normed(self.norm_out, rows, STRIP), rows))
        return gathered(rows, 0, rows.height, STRIP)


def through_block(block: ResBlock, rows: Rows) -> Tensor:
    """A residual block: [1, c_in, h, w] -> [1, c_out, h, w]."""
    y = gathered(convolved(block.conv1, passed(normed(block.norm1, rows, STRIP), rows)), 0, rows.height, STRIP)
    middle = of(y)
    second = convolved(block.conv2, passed(normed(block.norm2, middle, STRIP), middle))
    done: tuple[slice, Tensor] | None = None      # the last strip, of which the next still needs the former row
    for start, stop in rows.strips(STRIP):
        strip = second.read(start, stop).add_(block.skip(rows.read(start, stop)))
        if done is not None:
            y[:, :, done[0]] = done[1]
        done = slice(start, stop), strip
    if done is not None:
        y[:, :, done[0]] = done[1]
    return y


def of(x: Tensor) -> Rows:
    """A picture that is there already."""
    return those_of(x, 0, x.shape[2])
