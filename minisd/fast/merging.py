"""Tokens that are alike merged before self-attention and parted after it, where a UNet has the most of them.

ToMeSD (Bolya and Hoffman 2023, arXiv 2303.17604): in every 2x2 square of the picture one token stays, here the upper
left one (theirs is drawn); of the others those most alike to one that stays, wherever it is, are averaged with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.fast.onednn import inferring, product, serves
from minisd.fast.reuse import Reusing
from minisd.layers import Attention, Transformer2D, TransformerLayer
from minisd.sites import NO_SITES, Sites
from minisd.unet import Stage, UNet

CHUNK = 1 << 24                                   # likenesses compared at once


class MergedAttention(nn.Module):
    """Self-attention of a picture of (height, width) tokens, of which a share is merged into others."""

    def __init__(self, attention: nn.Module, size: tuple[int, int], share: float):
        super().__init__()
        self.attention, self.size, self.share = attention, size, share

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # [b, n, dim], the same -> [b, n, dim]
        places = [match(tokens, *self.size, self.share) for tokens in x]
        left = x.shape[1] - merges(*self.size, self.share)
        few = torch.stack([means(tokens, place, left) for tokens, place in zip(x, places, strict=True)])
        y = self.attention(few, few)                                 # [b, left, dim]
        return torch.stack([tokens[place] for tokens, place in zip(y, places, strict=True)])


def merges(height: int, width: int, share: float) -> int:
    """How many tokens are merged: a share of all, and at most those that need not stay."""
    return min(int(share * height * width), height * width - -(-height // 2) * -(-width // 2))


def match(tokens: Tensor, height: int, width: int, share: float) -> Tensor:
    """Where each token of one picture goes: [n, dim] -> [n] places among those left, which keep their order."""
    index = torch.arange(height * width, device=tokens.device).view(height, width)
    stay, go = index[::2, ::2].flatten(), torch.cat([index[::2, 1::2].flatten(), index[1::2].flatten()])
    likeness, whom = nearest(tokens[go], tokens[stay])
    most = likeness.argsort(descending=True, stable=True)[:merges(height, width, share)]
    left = torch.ones_like(index, dtype=torch.bool).flatten()
    left[go[most]] = False
    place = left.cumsum(0) - 1
    place[go[most]] = place[stay[whom[most]]]
    return place


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each of a the greatest cosine with one of b, and which it is: [n, dim], [m, dim] -> [n], [n]."""
    a, b = (F.normalize(x.float(), dim=1).to(x.dtype) for x in (a, b))
    times = product if serves(b) and inferring() else F.linear
    found = [times(part, b).max(dim=1) for part in a.split(max(CHUNK // len(b), 1))]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def means(tokens: Tensor, place: Tensor, left: int) -> Tensor:
    """Of those that go to one place: [n, dim], [n] -> [left, dim]. Added up in their order, on every device."""
    ordered, order = place.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(left, device=place.device))
    return F.embedding_bag(order, tokens, starts, mode="mean")


@contextmanager
def merged(unet: UNet, share: float, height: int, width: int) -> Iterator[None]:
    """The UNet with tokens merged, for latents of this size; afterwards it is as it was."""
    stage = next((n for n, depth in enumerate(unet.cfg.depths) if depth), 0)
    for _ in range(stage):
        height, width = -(-height // 2), -(-width // 2)          # a stride of 2 rounds up
    whole = [(layer, layer.self_attn) for layer in layers_of(unet, stage)]
    try:
        for layer, attention in whole:
            layer.self_attn = cast(Attention, MergedAttention(attention, (height, width), share))
        yield
    finally:
        for layer, attention in whole:
            layer.self_attn = attention


def layers_of(unet: UNet, stage: int) -> list[TransformerLayer]:
    """Those of one width, on the way down and up."""
    both = [cast(Stage, unet.down[stage]), cast(Stage, unet.up[-1 - stage])]
    attentions = [cast(Transformer2D, attention) for part in both for attention in part.attn]
    return [cast(TransformerLayer, layer) for attention in attentions for layer in attention.layers]


class Merging:
    """A UNet, or what stands for it in a walk, that is called with tokens merged and left as it was."""

    def __init__(self, network: UNet | Reusing, unet: UNet, share: float):
        self.network, self.unet, self.share = network, unet, share

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None = None,
                 sites: Sites = NO_SITES) -> Tensor:
        """As the UNet's forward."""
        with merged(self.unet, self.share, *x.shape[2:]):
            return self.network(x, t, context, label, sites)
