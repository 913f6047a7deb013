"""The denoising UNet of Stable Diffusion from one config: SD1.x, SD2.x, SDXL and their pruned students.

Encoder is the down half with the mid block, which a ControlNet shares; UNet adds the way up.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.layers import MLP, ResBlock, Transformer2D, timestep_features
from minisd.sites import NO_SITES, Sites

EPS = 1e-5  # of the GroupNorms in residual blocks and before the output; the transformers use 1e-6


class Stage(nn.Module):
    """Residual blocks, each followed by a transformer where the stage has any, and at most one resize."""

    def __init__(self, channels: list[int], width: int, depth: int, cfg: UNetConfig, resize: str | None = None):
        super().__init__()
        time_dim = 4 * cfg.widths[0]
        self.res = nn.ModuleList(ResBlock(c, width, cfg.groups, EPS, time_dim) for c in channels)
        self.attn = nn.ModuleList(transformer(width, depth, cfg) for _ in channels if depth)
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1) if resize == "down" else None
        self.upsample = nn.Conv2d(width, width, 3, padding=1) if resize == "up" else None

    def block(self, i: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:  # [b, c, h, w] -> [b, width, h, w]
        x = self.res[i](x, time)
        return self.attn[i](x, context) if len(self.attn) else x

    def enlarged(self, x: Tensor, size: torch.Size) -> Tensor:  # [b, width, h, w] -> [b, width, *size]
        assert self.upsample is not None, "the last stage enlarges nothing"
        return self.upsample(F.interpolate(x, size=size, mode="nearest"))


class Mid(nn.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    def __init__(self, width: int, depth: int, cfg: UNetConfig):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(width, width, cfg.groups, EPS, 4 * cfg.widths[0]) for _ in range(2))
        self.attn = nn.ModuleList([transformer(width, depth, cfg)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:  # [b, width, h, w] -> the same
        return self.res[1](self.attn[0](self.res[0](x, time), context), time)


def transformer(width: int, depth: int, cfg: UNetConfig) -> Transformer2D:
    return Transformer2D(width, depth, cfg.heads_at(width), cfg.context_dim, cfg.groups, cfg.linear_proj)


class Encoder(nn.Module):
    """Time and label embedding, the down stages and the mid block."""

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.cfg = cfg
        widths, last = cfg.widths, len(cfg.widths) - 1
        self.time = MLP(widths[0], 4 * widths[0])
        self.label = MLP(cfg.label_dim, 4 * widths[0]) if cfg.label_dim else None
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            channels = [widths[max(i - 1, 0)]] + [width] * (cfg.layers_at(i) - 1)
            self.down.append(Stage(channels, width, cfg.depths[i], cfg, resize="down" if i < last else None))
        self.mid = Mid(widths[-1], cfg.mid_depth, cfg) if cfg.mid_depth is not None else None

    def embed(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Time embedding: [b], [b, label_dim] -> [b, 4 * widths[0]]."""
        if (label is None) != (self.label is None):
            raise ValueError(f"label {'missing' if label is None else 'given'} but label_dim={self.cfg.label_dim}")
        time = self.time(timestep_features(t, self.cfg.widths[0]).to(dtype))
        return time if self.label is None else time + self.label(label)

    def encode(self, x: Tensor, time: Tensor, context: Tensor, sites: Sites) -> tuple[Tensor, list[Tensor]]:
        """The way down: latents to the mid block's output and the skips, the outermost first."""
        x = sites("conv_in", self.conv_in(x))
        skips = [x]
        for i, stage in enumerate(cast(Iterable[Stage], self.down)):
            for j in range(len(stage.res)):
                x = stage.block(j, x, time, context)
                if j == len(stage.res) - 1:
                    x = sites(f"down.{i}", x)
                skips.append(x)
            if stage.downsample is not None:
                x = sites(f"down.{i}.downsample", stage.downsample(x))
                skips.append(x)
        if self.mid is not None:
            x = self.mid(x, time, context)
        return sites("mid", x), skips


class UNet(Encoder):
    """Predicts the noise (or v, or x0) in latents x at timestep t, given the text states."""

    def __init__(self, cfg: UNetConfig):
        super().__init__(cfg)
        widths = cfg.widths
        skips = [widths[0]]  # channels of the skips, in the order in which `encode` makes them
        for i, width in enumerate(widths):
            skips += [width] * (cfg.layers_at(i) + (i < len(widths) - 1))
        self.up = nn.ModuleList()
        below = widths[-1]
        for i in reversed(range(len(widths))):
            channels = [(below if j == 0 else widths[i]) + skips.pop() for j in range(cfg.layers_at(i) + 1)]
            self.up.append(Stage(channels, widths[i], cfg.depths[i], cfg, resize="up" if i else None))
            below = widths[i]
        self.norm_out = nn.GroupNorm(cfg.groups, below, eps=EPS)
        self.conv_out = nn.Conv2d(below, cfg.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None = None,
                sites: Sites = NO_SITES) -> Tensor:
        """[b, in, h, w], [b], [b, m, context_dim], [b, label_dim] -> [b, out, h, w]; h and w may be any size."""
        time = self.embed(t, label, x.dtype)
        x, skips = self.encode(x, time, context, sites)
        for i, stage in enumerate(cast(Iterable[Stage], self.up)):
            for j in range(len(stage.res)):
                n = len(skips) - 1
                deep, skip = sites(f"deep.{n}", x), sites(f"skip.{n}", skips.pop())
                x = stage.block(j, torch.cat([deep, skip], dim=1), time, context)
            if stage.upsample is not None:  # to the size of the next skip: odd sizes were rounded up on the way down
                x = stage.enlarged(x, skips[-1].shape[2:])
            x = sites(f"up.{i}", x)
        return self.conv_out(F.silu(self.norm_out(x)))
