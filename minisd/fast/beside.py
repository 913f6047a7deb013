"""The fast layers with room for side paths: LoRA costs no layer its speed.

x (W + U D)' is x W' + (x D') U'. Where W is small the sum of the weights takes less than the side path does, so little
that it is made anew at every call: it is never out of date, and there is no second copy of the weights.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from minisd.fast.onednn import OneDNNLinear, OneDNNPoint, PackedConv2d, inferring, product
from minisd.lora import LoRAConv2d, LoRALinear, Side

# To make a sum takes about as long as the side path of in * out / (in + out) rows. What a call has of them does not
# count: a picture shall have the same bits in every batch.
ROWS = 400


class OneDNNLoRALinear(LoRALinear, OneDNNLinear):
    """A Linear by oneDNN, and what is beside it."""

    def forward(self, x: Tensor) -> Tensor:       # [..., in] -> [..., out]
        return answered(x, self.weight, self.bias, self.lora) if inferring() else super().forward(x)


class OneDNNLoRAPoint(LoRAConv2d, OneDNNPoint):
    """A 1x1 convolution as a product, and what is beside it."""

    def forward(self, x: Tensor) -> Tensor:       # [b, in, h, w] -> [b, out, h, w]
        if not inferring():
            return super().forward(x)
        pixels = x.permute(0, 2, 3, 1)
        return answered(pixels, self.weight.flatten(1), self.bias, self.lora).permute(0, 3, 1, 2)


class PackedLoRAConv2d(LoRAConv2d, PackedConv2d):
    """A convolution of a packed weight, and what is beside it."""


def answered(x: Tensor, weight: Tensor, bias: Tensor | None, sides: nn.ModuleDict) -> Tensor:
    """What a matrix and all that is beside it answer: [..., in], [out, in], [out] -> [..., out]."""
    pairs = []
    for side in cast(Iterable[Side], sides.values()):
        pair = side.matrices()
        if pair is None:
            weight = weight + (side.strength * side.delta()).view_as(weight)
        else:
            pairs.append([one.to(weight.dtype) for one in pair])
    if not pairs:
        return product(x, weight, bias)
    up, down = pairs[0] if len(pairs) == 1 else (torch.cat([up for up, _ in pairs], 1),
                                                 torch.cat([down for _, down in pairs]))
    if weight.numel() <= ROWS * sum(weight.shape):
        return product(x, torch.addmm(weight, up, down), bias)
    y, narrow = product(x, weight, bias), product(x, down)
    y.view(-1, len(up)).addmm_(narrow.view(-1, len(down)), up.t())
    return y
