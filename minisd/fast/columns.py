"""Convolutions of few pixels and many weights, trained as products.

To the gradient of a weight PyTorch comes by way of oneDNN's own order of it, into which and out of which it is copied;
at 8x8 pixels that takes ten times as long as the arithmetic. With the pixels that each output sees laid beside one
another (im2col: Chellapilla et al. 2006, "High performance convolutional neural networks for document processing") the
output and both gradients are matrix products that read and write the weight as it lies in memory, channels last.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minisd.fast.onednn import computes, trained_in

MANY = 1 << 22                                    # weights: with fewer there is little to win
FEW, FEWEST = 1024, 256                           # outputs per channel: up to which the weight's gradient is a product,
Pair = tuple[int, int]                            # and up to which the rest is, too


class ColumnConv2d(nn.Conv2d):
    """The same weights; in bfloat16, and where gradients are wanted, products."""

    def forward(self, x: Tensor) -> Tensor:  # [b, in_channels, h, w] -> [b, out_channels, h', w']
        dtype, stride, padding = trained_in(x), cast(Pair, self.stride), cast(Pair, self.padding)
        many = len(x) * area(outputs(x, self.weight, stride, padding)) > FEW
        if many or dtype != torch.bfloat16 or not computes(dtype):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return cast(Tensor, Columns.apply(x.to(dtype), self.weight.to(dtype), bias, stride, padding))


def suited(conv: nn.Conv2d) -> bool:
    """Whether a convolution may be a ColumnConv2d, and may gain by it."""
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and not isinstance(conv.padding, str) and conv.weight.numel() >= MANY


class Columns(torch.autograd.Function):
    """`F.conv2d` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        size = outputs(x, weight, stride, padding)
        if len(x) * area(size) > FEWEST:
            return F.conv2d(x, weight, bias, stride, padding)
        y = F.linear(columns(x, weight.shape[2:], stride, padding), rows(weight), bias)
        return y.view(len(x), *size, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # [b, out_channels, h', w']
        x, weight = ctx.saved_tensors
        flat = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = seen_by(grad, flat, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            product = flat.t() @ columns(x, weight.shape[2:], ctx.stride, ctx.padding)
            found[1] = product.view(weight.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            found[2] = flat.sum(0)
        return *found, None, None


def seen_by(grad: Tensor, flat: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of x; `flat` is the output's with a row for each pixel."""
    if len(flat) > FEWEST:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (True, False, False))[0]
    return summed(flat @ rows(weight), x, weight.shape[2:], grad.shape[2:], stride, padding)


def columns(x: Tensor, kernel: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """What each output sees: [b, c, h, w] -> [b * h' * w', kernel's height * width * c]."""
    wide = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = wide.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [b, h', w', c, kernel]
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, area(kernel) * x.shape[1])


def summed(seen: Tensor, x: Tensor, kernel: torch.Size, size: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """The way back from `columns`, summed in float32 where pixels were seen several times: like x."""
    (b, c, h, w), (high, wide) = x.shape, size
    parts = seen.view(b, high, wide, *kernel, c)
    total = seen.new_zeros(b, h + 2 * padding[0], w + 2 * padding[1], c, dtype=torch.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            total[:, i:i + high * stride[0]:stride[0], j:j + wide * stride[1]:stride[1]] += parts[:, :, :, i, j]
    return total[:, padding[0]:padding[0] + h, padding[1]:padding[1] + w].to(seen.dtype).permute(0, 3, 1, 2)


def rows(weight: Tensor) -> Tensor:
    """A row for each output channel, as it lies in memory: [out, in, high, wide] -> [out, high * wide * in]."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def outputs(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    """Height and width of what a convolution gives."""
    high, wide = ((x.shape[n + 2] + 2 * padding[n] - weight.shape[n + 2]) // stride[n] + 1 for n in (0, 1))
    return high, wide


def area(size: Pair | torch.Size) -> int:
    return size[0] * size[1]
