"""Blocks that write over what nobody needs any more, and go through the widest of their layers in pieces.

Fewer tensors come into being, so that fewer pages are cleared by the kernel and more stays in the processor's caches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.layers import GEGLU, ResBlock, TransformerLayer

ROWS = 512                                        # tokens at a time, whose 8 dim values fit a cache


class LeanGroupNorm(nn.GroupNorm):
    """Without the look at layouts that has a compiler tell a batch of one from others."""

    def forward(self, x: Tensor) -> Tensor:  # [b, c, h, w] -> [b, c, h, w]
        if not torch.compiler.is_compiling():
            return super().forward(x)
        b, c, h, w = x.shape
        return torch.native_group_norm(x, self.weight, self.bias, b, c, h * w, self.num_groups, self.eps)[0]


class LeanResBlock(ResBlock):
    """Activations and sums in place."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # [b, c_in, h, w] -> [b, c_out, h, w]
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if self.time is not None:
            assert time is not None, "this block was built with a time input"
            h += self.time(F.silu(time))[:, :, None, None]
        h = self.norm2(h)
        h = self.conv2(F.silu(h, inplace=True))
        return h.add_(self.skip(x))


class LeanGEGLU(GEGLU):
    """Tokens some at a time."""

    def forward(self, x: Tensor) -> Tensor:  # [b, n, dim] -> [b, n, dim]
        # Gradients know nothing of pieces written into one tensor; a compiler fuses the whole, in any number of tokens.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        y = torch.empty_like(x)
        for part, out in zip(x.flatten(0, 1).split(ROWS), y.flatten(0, 1).split(ROWS), strict=True):
            value, gate = self.in_proj(part).chunk(2, dim=-1)
            out.copy_(self.out_proj(F.gelu(gate).mul_(value)))
        return y


class LeanTransformerLayer(TransformerLayer):
    """Sums in place."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # [b, n, dim], [b, m, context_dim] -> [b, n, dim]
        h = self.norm1(x)
        x = self.self_attn(h, h).add_(x)
        x = self.cross_attn(self.norm2(x), context).add_(x)
        return self.ff(self.norm3(x)).add_(x)
