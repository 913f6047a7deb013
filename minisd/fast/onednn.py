"""Layers computed by oneDNN itself where PyTorch would take another way round.

In float32 PyTorch hands matrix products, and with them 1x1 convolutions, to MKL, which on AMD's processors reaches half
of oneDNN's speed; and it reorders the weights of every 3x3 convolution at every call, which at 8x8 pixels takes longer
than the convolution. The operators used here are those that PyTorch's own compiler puts into its code for CPUs; they
know neither gradients nor autocast, and where either is asked for, every layer computes as PyTorch does.
"""

import math
import platform
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

mkldnn = torch.ops.mkldnn                         # oneDNN's former name
HERE = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
USUAL = (2, 32, 32)                               # batch, height, width: the order of a packed weight serves them all,
UNSETTLED = 48                                    # but for output channels that are a multiple of this one
ROWS = math.prod(USUAL)                           # of a packed Linear's input; it serves any number


def serves(weight: Tensor) -> bool:
    """Whether oneDNN computes with such weights on this machine, and nobody trains them."""
    return not weight.requires_grad and weight.device.type == "cpu" and computes(weight.dtype)


def computes(dtype: torch.dtype | None) -> bool:
    """Whether oneDNN does in this precision on this machine."""
    return HERE and (dtype == torch.float32 or (dtype == torch.bfloat16 and mkldnn._is_mkldnn_bf16_supported()))


def inferring() -> bool:
    """Whether the operators of this file will do."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))


def trained_in(x: Tensor) -> torch.dtype | None:
    """What a layer computes in for gradients that are wanted; None where none are, or not of PyTorch on a CPU."""
    if not torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for inference: [..., in], [out, in], [out] -> [..., out]."""
    return (traced_product if torch.compiler.is_compiling() else _product)(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
                 dilation: Sequence[int], groups: int) -> Tensor:
    """`F.conv2d` of a packed weight."""
    return mkldnn._convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, "none", [], "")


# The compiler takes the operators themselves for constant weights alone; these it leaves as they are.
traced_product = torch.library.custom_op("minisd::product", _product, mutates_args=())
traced_convolution = torch.library.custom_op("minisd::convolution", _convolution, mutates_args=())


@traced_product.register_fake
def linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@traced_convolution.register_fake
def _convolution_shape(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
                       dilation: Sequence[int], groups: int) -> Tensor:
    seen = [dilation[n] * (weight.shape[n + 2] - 1) + 1 for n in (0, 1)]
    sides = [(x.shape[n + 2] + 2 * padding[n] - seen[n]) // stride[n] + 1 for n in (0, 1)]
    return x.new_empty(x.shape[0], *sides, weight.shape[0]).permute(0, 3, 1, 2)


def packed(weight: Tensor, rows: int) -> Tensor:
    """A weight of `product`, laid out for it once where it is asked several times, with so many rows."""
    return mkldnn._reorder_linear_weight(weight.contiguous(), rows)


class OneDNNLinear(nn.Linear):
    """The same weights, another multiplication."""

    def forward(self, x: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        return product(x, self.weight, self.bias) if inferring() else super().forward(x)


class Packed(nn.Module):
    """A layer whose weight lies in the order in which it is computed, for good.

    The weight is an opaque tensor meanwhile: it has its shape and dtype, and `to_dense()` and the state dictionary
    give it as it was.
    """

    weight: Tensor

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = dense(self.weight).detach()


class PackedLinear(Packed, nn.Linear):
    """A Linear. Results keep the bits of `product`."""

    def forward(self, x: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        return product(x, self.weight, self.bias) if inferring() else F.linear(x, self.weight.to_dense(), self.bias)


class OneDNNPoint(nn.Conv2d):
    """A 1x1 convolution as a product over pixels."""

    def forward(self, x: Tensor) -> Tensor:  # [b, in_channels, h, w] -> [b, out_channels, h, w]
        if not inferring():
            return super().forward(x)
        return product(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PackedConv2d(Packed, nn.Conv2d):
    """A convolution. Results keep their bits."""

    def forward(self, x: Tensor) -> Tensor:  # [b, in_channels, h, w] -> [b, out_channels, h', w']
        if not inferring():
            return self._conv_forward(x, self.weight.to_dense(), self.bias)
        convolution = traced_convolution if torch.compiler.is_compiling() else _convolution
        padding = cast(tuple[int, ...], self.padding)
        return convolution(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def dense(weight: Tensor) -> Tensor:
    """A weight in the order of its indices, whether it was packed or not."""
    return weight.to_dense() if weight.is_mkldnn else weight


def settled(conv: nn.Conv2d) -> bool:
    """Whether the order of its weight is the same for pictures of every size.

    Channels in blocks of 48 oneDNN puts in order by the size as well, and with the wrong one a convolution takes 30 to
    150 times as long. Stable Diffusion's 320, 640 and 1280 are none.
    """
    return conv.out_channels % UNSETTLED != 0


def pack(conv: nn.Conv2d) -> None:
    """Its weight into the order of its computation."""
    weight = conv.weight.detach().to(memory_format=torch.channels_last)
    batch, height, width = USUAL
    packed = mkldnn._reorder_convolution_weight(weight, conv.padding, conv.stride, conv.dilation, conv.groups,
                                                [batch, conv.in_channels, height, width])
    conv.weight = nn.Parameter(packed, requires_grad=False)


def unpack(conv: nn.Conv2d) -> None:
    """Its weight back, laid out as PyTorch's convolutions like it best."""
    weight = conv.weight.to_dense().to(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weight, requires_grad=False)


def owned(weight: Tensor) -> bool:
    """Whether its memory is PyTorch's. In that of a mapped file, which its neighbours keep, it would be there twice."""
    return weight.untyped_storage().resizable()


def pack_linear(linear: nn.Linear) -> None:
    """Its weight into the order of its multiplication."""
    linear.weight = nn.Parameter(packed(linear.weight.detach(), ROWS), requires_grad=False)


def unpack_linear(linear: nn.Linear) -> None:
    """Its weight back."""
    linear.weight = nn.Parameter(linear.weight.to_dense(), requires_grad=False)
