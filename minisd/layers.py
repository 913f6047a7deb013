"""The parts that the models share: residual block, attention, feed-forward, transformer over a picture, time features.

b batch, c channels, h w height and width, n tokens, m context tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_features(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of a timestep at dim/2 frequencies from 1 to 1/10000 (DDPM, appendix B): [b] -> [b, dim]."""
    freqs = torch.exp(-math.log(10_000) * torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2))
    angles = t.float()[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class MLP(nn.Module):
    """Linear, SiLU, Linear: brings timestep features and labels to the width of the time embedding."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.in_proj = nn.Linear(dim_in, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [b, dim_in] -> [b, dim]
        return self.out_proj(F.silu(self.in_proj(x)))


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a residual path; the time embedding, if there is one, is added between them.

    eps is 1e-5 in the UNet and 1e-6 in the VAE: with small activations the difference shows.
    """

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, time_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out) if time_dim else None
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # [b, c_in, h, w] -> [b, c_out, h, w]
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None:
            assert time is not None, "this block was built with a time input"
            h = h + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Multi-head attention of x over a context; self-attention when the context is x itself.

    The UNet's projections to queries, keys and values have no bias; those of CLIP and of the VAE have one.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.k = nn.Linear(context_dim, dim, bias=bias)
        self.v = nn.Linear(context_dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, causal: bool = False) -> Tensor:  # [b, n, dim], [b, m, context_dim]
        q, k, v = self.split(self.q(x)), self.split(self.k(context)), self.split(self.v(context))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))  # [b, heads, n, dim/heads] -> [b, n, dim]

    def split(self, x: Tensor) -> Tensor:  # [b, n, dim] -> [b, heads, n, dim/heads]
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    """Feed-forward of width 4 dim whose values are gated by GELU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int):
        super().__init__()
        self.in_proj = nn.Linear(dim, 8 * dim)  # values and gates in one product
        self.out_proj = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [b, n, dim] -> [b, n, dim]
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(value * F.gelu(gate))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each normalised before and added after."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = Attention(dim, context_dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = GEGLU(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # [b, n, dim], [b, m, context_dim] -> [b, n, dim]
        h = self.norm1(x)
        x = x + self.self_attn(h, h)
        x = x + self.cross_attn(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer layers over the pixels of a picture, added to it.

    SD1 projects in and out by 1x1 convolutions on the picture, SD2 and SDXL by Linears on its tokens (`linear`).
    """

    def __init__(self, dim: int, depth: int, heads: int, context_dim: int, groups: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)  # 1e-6 here, 1e-5 in the ResBlocks around it
        self.proj_in = nn.Linear(dim, dim) if linear else nn.Conv2d(dim, dim, 1)
        self.layers = nn.ModuleList(TransformerLayer(dim, context_dim, heads) for _ in range(depth))
        self.proj_out = nn.Linear(dim, dim) if linear else nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # [b, dim, h, w] -> [b, dim, h, w]
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for layer in self.layers:
            h = layer(h, context)
        if self.linear:
            return x + to_image(self.proj_out(h), x)
        return x + self.proj_out(to_image(h, x))


def to_tokens(x: Tensor) -> Tensor:  # [b, c, h, w] -> [b, h*w, c]
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, like: Tensor) -> Tensor:  # [b, h*w, c] -> [b, c, h, w]
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])
