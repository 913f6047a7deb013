"""A UNet's pictures doubled on its way up and then convolved, by the four smaller kernels of `phases`, kept packed."""

from typing import cast

import torch
from torch import Tensor, nn

from minisd.fast.onednn import UNSETTLED, PackedConv2d, inferring, mkldnn, pack, unpack
from minisd.fast.phases import Phases
from minisd.unet import Stage

FEWEST = 1 << 5                                   # pixels: of fewer the weights, 16/9 as many, take longer to read
USUAL = (2, 16, 16)                               # batch, height, width


class DoublingStage(Stage):
    """Enlarges by its convolution's phases what is to be twice as large, and other pictures as any stage does."""

    def enlarged(self, x: Tensor, size: torch.Size) -> Tensor:  # [b, c, h, w] -> [b, c, *size]
        twice = [2 * side for side in x.shape[2:]]
        if (torch.compiler.is_compiling() or not inferring() or type(self.upsample) is not DoublingConv2d
                or twice != list(size) or x.shape[2] * x.shape[3] < FEWEST):
            return super().enlarged(x, size)
        return self.upsample.doubled(x)


class DoublingConv2d(PackedConv2d):
    """A packed convolution, and beside it what it is to doubled pictures."""

    phases: Tensor                                # [4 out, in, 2, 2], packed
    biases: Tensor | None                         # [4 out]

    def doubled(self, x: Tensor) -> Tensor:  # [b, c, h, w] -> [b, out, 2h, 2w]
        b, _, h, w = x.shape
        four = mkldnn._convolution_pointwise(x, self.phases, self.biases, (1, 1), (1, 1), (1, 1), 1, "none", [], "")
        four = four.permute(0, 2, 3, 1)           # [b, h + 1, w + 1, 4 out]
        y = x.new_empty(b, h, 2, w, 2, self.out_channels)
        for phase, part in enumerate(four.chunk(4, dim=3)):
            row, column = divmod(phase, 2)
            y[:, :, row, :, column] = part[:, row:row + h, column:column + w]
        return y.view(b, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def doubled_in(model: nn.Module) -> list[nn.Module]:
    """The convolutions of what a UNet has doubled, but of three or more the first.

    Its pictures are so small that phases, whose weights are as many as another's, win hardly anything.
    """
    stages = (cast(Stage, module) for module in model.modules() if type(module) in (Stage, DoublingStage))
    found: list[nn.Module] = [stage.upsample for stage in stages if stage.upsample is not None]
    return found[1:] if len(found) > 2 else found


def packable(conv: nn.Conv2d) -> bool:
    """Whether the order of its phases' weights is settled, which have four times as many channels."""
    return 4 * conv.out_channels % UNSETTLED != 0


def pack_twice(conv: nn.Conv2d) -> None:
    """Its weight as `onednn.pack` does it, and the phases' beside it."""
    phases = Phases(conv)
    batch, height, width = USUAL
    packed = mkldnn._reorder_convolution_weight(phases.weight, (1, 1), (1, 1), (1, 1), 1,
                                                [batch, conv.in_channels, height, width])
    conv.register_buffer("phases", packed, persistent=False)
    conv.register_buffer("biases", phases.bias, persistent=False)
    pack(conv)
    conv.__class__ = DoublingConv2d


def unpack_both(conv: nn.Conv2d) -> None:
    """Its weight back, and no phases."""
    del conv._buffers["phases"], conv._buffers["biases"]
    unpack(conv)
