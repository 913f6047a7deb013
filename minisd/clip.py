"""CLIP's two towers (Radford et al. 2021, arXiv 2103.00020): the text transformer that conditions the UNet, and the
vision transformer that scores pictures against words."""

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import Activation, CLIPTextConfig, CLIPVisionConfig
from minisd.layers import Attention, to_tokens


class TextStates(NamedTuple):
    """hidden [b, n, width]: what the UNet's cross-attention sees; pooled [b, projection_dim or width]."""

    hidden: Tensor
    pooled: Tensor


def activate(x: Tensor, activation: Activation) -> Tensor:
    """OpenAI's models have x * sigmoid(1.702 x) ("quick GELU"), OpenCLIP's the exact GELU."""
    return x * torch.sigmoid(1.702 * x) if activation == "quick_gelu" else F.gelu(x)


def with_clip_skip(cfg: CLIPTextConfig, skip: int, numbering: Literal["a1111", "diffusers"]) -> CLIPTextConfig:
    """The config that leaves out last layers. A1111 and ComfyUI count from 1 = none, diffusers from 0 = none."""
    return replace(cfg, skipped_layers=skip - 1 if numbering == "a1111" else skip)


class Embedding(nn.Embedding):
    """A table of rows, and behind it the rows of words learnt later: a parameter of their own, so others cannot move.

    Textual inversion (Gal et al., arXiv 2208.01618).
    """

    def __init__(self, rows: int, extra: int, width: int):
        super().__init__(rows, width)
        self.extra = nn.Parameter(torch.zeros(extra, width)) if extra else None

    def forward(self, ids: Tensor) -> Tensor:     # [b, n] -> [b, n, width]
        if self.extra is None:
            return super().forward(ids)
        rows = len(self.weight)
        known = F.embedding(ids.clamp(max=rows - 1), self.weight)
        learnt = F.embedding((ids - rows).clamp(min=0), self.extra)
        return torch.where((ids >= rows)[..., None], learnt, known)


class Layer(nn.Module):
    """Self-attention and a feed-forward of width 4 dim; each normalised before and added after."""

    def __init__(self, dim: int, heads: int, activation: Activation):
        super().__init__()
        self.activation: Activation = activation
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, dim, heads, bias=True)
        self.norm2 = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 4 * dim)
        self.out_proj = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:  # [b, n, dim] -> [b, n, dim]
        h = self.norm1(x)
        x = x + self.attn(h, h, causal=causal)
        return x + self.out_proj(activate(self.in_proj(self.norm2(x)), self.activation))


class CLIPText(nn.Module):
    """Causal transformer over tokens. The pooled state is that of the first end token, the last of the vocabulary."""

    def __init__(self, cfg: CLIPTextConfig):
        super().__init__()
        self.cfg = cfg
        self.token = Embedding(cfg.vocab_size, sum(word.vectors for word in cfg.words), cfg.width)
        self.position = nn.Embedding(cfg.window, cfg.width)
        self.layers = nn.ModuleList(Layer(cfg.width, cfg.heads, cfg.activation) for _ in range(cfg.depth))
        self.norm_out = nn.LayerNorm(cfg.width)
        self.projection = nn.Linear(cfg.width, cfg.projection_dim, bias=False) if cfg.projection_dim else None

    def forward(self, ids: Tensor) -> TextStates:
        """ids [b, n], n at most the window -> TextStates."""
        if ids.shape[1] > self.cfg.window:
            raise ValueError(f"{ids.shape[1]} tokens but a window of {self.cfg.window}: split the prompt into windows")
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        hidden = x
        for n, layer in enumerate(self.layers, start=1):
            x = layer(x, causal=True)
            if n == self.cfg.depth - self.cfg.skipped_layers:
                hidden = x
        x = self.norm_out(x)
        if self.cfg.final_norm:
            hidden = self.norm_out(hidden) if self.cfg.skipped_layers else x
        end = self.cfg.vocab_size - 1             # not the highest id, which may be that of a word learnt later
        pooled = x[torch.arange(len(ids), device=ids.device), (ids == end).int().argmax(dim=1)]  # argmax: the first
        return TextStates(hidden, pooled if self.projection is None else self.projection(pooled))


class CLIPVision(nn.Module):
    """Transformer over the patches of a picture; the class token's state, projected, meets the pooled text."""

    def __init__(self, cfg: CLIPVisionConfig):
        super().__init__()
        self.cfg = cfg
        self.patch = nn.Conv2d(3, cfg.width, cfg.patch, stride=cfg.patch, bias=False)
        self.cls = nn.Parameter(torch.randn(cfg.width) * cfg.width ** -0.5)
        self.position = nn.Embedding((cfg.image_size // cfg.patch) ** 2 + 1, cfg.width)
        self.norm_in = nn.LayerNorm(cfg.width)
        self.layers = nn.ModuleList(Layer(cfg.width, cfg.heads, cfg.activation) for _ in range(cfg.depth))
        self.norm_out = nn.LayerNorm(cfg.width)
        self.projection = nn.Linear(cfg.width, cfg.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:  # [b, 3, image_size, image_size] -> [b, projection_dim]
        patches = to_tokens(self.patch(pixels))
        x = torch.cat([self.cls.to(patches.dtype).expand(len(patches), 1, -1), patches], dim=1)
        x = self.norm_in(x + self.position.weight)
        for layer in self.layers:
            x = layer(x, causal=False)
        return self.projection(self.norm_out(x[:, 0]))
