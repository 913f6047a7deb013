"""A picture doubled and then convolved, by a smaller convolution: exact but for the rounding of sums of weights.

Under a 3x3 kernel a picture of doubled pixels shows no more than 2x2 different ones. With the weights of equal pixels
added up there are four kernels of 2x2, one for each of the four that a pixel becomes: 4/9 of the multiplications.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.fast.onednn import inferring
from minisd.vae import Stage

FEWEST = 1 << 10                                  # pixels: for fewer, to add up the weights takes longer than it saves
STRIP = 1 << 13                                   # pixels at a time, so that the four of each fit a cache
# Which of three rows of a kernel see the one and the other of two pixels: for the upper of two new ones, and the lower.
SEEN = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class PhasedStage(Stage):
    """Doubles large pictures by it."""

    def resized(self, x: Tensor) -> Tensor:  # [b, c, h, w] -> [b, c, 2h, 2w], or as a stage that does not enlarge
        conv = self.upsample
        if type(conv) is not nn.Conv2d or not inferring() or x.shape[2] * x.shape[3] < FEWEST:
            return super().resized(x)
        return Phases(conv)(F.pad(x, (0, 0, 1, 1)))


class Phases:
    """The four kernels of a 3x3 convolution of doubled pictures, for as long as they are needed."""

    def __init__(self, conv: nn.Conv2d):
        exact = torch.promote_types(conv.weight.dtype, torch.float32)
        seen = torch.tensor(SEEN, dtype=exact, device=conv.weight.device)
        weight = torch.einsum("yki,xlj,ocij->yxockl", seen, seen, conv.weight.to(exact))
        self.weight = weight.flatten(0, 2).to(conv.weight.dtype, memory_format=torch.channels_last)
        self.bias = conv.bias.repeat(4) if conv.bias is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        """[b, c, h + 2, w], the rows above and below included, -> [b, out, 2h, 2w]; some rows at a time."""
        b, h, w, out = x.shape[0], x.shape[2] - 2, x.shape[3], len(self.weight) // 4
        y, step = x.new_empty(b, h, 2, w, 2, out), max(STRIP // w, 1)
        for start in range(0, h, step):
            self._fill(y[:, start:start + step], x[:, :, start:start + step + 2])
        return y.view(b, 2 * h, 2 * w, out).permute(0, 3, 1, 2)

    def _fill(self, y: Tensor, x: Tensor) -> None:
        """[b, h, 2, w, 2, out] from [b, c, h + 2, w]."""
        four = F.conv2d(x, self.weight, self.bias, padding=(0, 1)).permute(0, 2, 3, 1)  # [b, h + 1, w + 1, 4 out]
        for phase, part in enumerate(four.chunk(4, dim=3)):
            row, column = divmod(phase, 2)
            y[:, :, row, :, column] = part[:, row:row + y.shape[1], column:column + y.shape[3]]
