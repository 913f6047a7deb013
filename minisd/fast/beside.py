"""The fast layers with room for side paths: LoRA costs no layer its speed.

x (W + U D)' is x W' + (x D') U'. Where W is small the sum of the weights takes less than the side path does. It is made
anew at every call, so it is never out of date and there is no second copy of the weights; but for a walk down to a
picture, whose every step would make the same, it is kept (`keeping`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from minisd.fast.onednn import OneDNNLinear, OneDNNPoint, PackedConv2d, inferring, product
from minisd.lora import LoRAConv2d, LoRALinear, Side

# To make a sum takes about as long as the side path of in * out / (in + out) rows. What a call has of them does not
# count: a picture shall have the same bits in every batch.
ROWS = 400


class Sum(NamedTuple):
    """A matrix and all that is beside it: [out, in]; and [out, ranks] and [ranks, in], whose product is to be added."""

    weight: Tensor
    sides: tuple[Tensor, Tensor] | None


class Kept(NamedTuple):
    """A sum, and what it was made of, which lives as long: no other tensor can be taken for it."""

    sum: Sum
    tensors: list[Tensor]
    state: list[tuple[int, int, int]]


SUMS: ContextVar[dict[nn.ModuleDict, Kept] | None] = ContextVar("SUMS", default=None)


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
        return answered(pixels, self.weight, self.bias, self.lora).permute(0, 3, 1, 2)


class PackedLoRAConv2d(LoRAConv2d, PackedConv2d):
    """A convolution of a packed weight, and what is beside it."""


@contextmanager
def keeping() -> Iterator[None]:
    """Sums are kept meanwhile, each until what it was made of is replaced or changed in place.

    What is written past autograd's sight, through `.data`, is past the sight of this, too.
    """
    token = SUMS.set({})
    try:
        yield
    finally:
        SUMS.reset(token)


def answered(x: Tensor, weight: Tensor, bias: Tensor | None, sides: nn.ModuleDict) -> Tensor:
    """What a matrix and all that is beside it answer: [..., in], [out, in, ...], [out] -> [..., out]."""
    total, pair = kept(weight, sides)
    y = product(x, total, bias)
    if pair is not None:
        up, down = pair
        y.view(-1, len(total)).addmm_(product(x, down).view(-1, len(down)), up.t())
    return y


def kept(weight: Tensor, sides: nn.ModuleDict) -> Sum:
    """`summed`, of this walk or anew."""
    sums = None if torch.compiler.is_compiling() else SUMS.get()
    if sums is None:
        return summed(weight, sides)
    tensors = [weight, *chain(sides.parameters(), sides.buffers())]
    if any(map(torch.is_inference, tensors)):     # of whose changes nothing is known
        return summed(weight, sides)
    state = [(id(one), one._version, one.data_ptr()) for one in tensors]
    if (found := sums.get(sides)) is None or found.state != state:
        found = sums[sides] = Kept(summed(weight, sides), tensors, state)
    return found.sum


def summed(weight: Tensor, sides: nn.ModuleDict) -> Sum:
    """What is beside a matrix [out, in, ...], added to it where that is less work."""
    weight, pairs = weight.flatten(1), []
    for side in cast(Iterable[Side], sides.values()):
        pair = side.matrices()
        if pair is None:
            weight = weight + (side.strength * side.delta()).view_as(weight)
        else:
            pairs.append([one.to(weight.dtype) for one in pair])
    if not pairs:
        return Sum(weight, None)
    up, down = pairs[0] if len(pairs) == 1 else (torch.cat([up for up, _ in pairs], 1),
                                                 torch.cat([down for _, down in pairs]))
    if weight.numel() <= ROWS * sum(weight.shape):
        return Sum(torch.addmm(weight, up, down), None)
    return Sum(weight, (up, down))
