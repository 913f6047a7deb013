"""Deep features used again: some calls of a UNet are whole, the others compute its outermost blocks and no more.

DeepCache (Ma et al. 2023, arXiv 2312.00858): what comes up from below changes little from one step to the next.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.sites import NO_SITES, Sites
from minisd.unet import Stage, UNet

DEEP = "deep.1"                                   # the paper's choice: one block of the way down, two of the way up


class Outermost(nn.Module):
    """What every call computes: the first block of a UNet's way down and the last two of its way up."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None, deep: Tensor,
                sites: Sites = NO_SITES) -> Tensor:
        """As the UNet's, beside what once came up from below: [b, c, h, w]."""
        unet, down, up = self.unet, cast(Stage, self.unet.down[0]), cast(Stage, self.unet.up[-1])
        time = unet.embed(t, label, x.dtype)
        first = sites("conv_in", unet.conv_in(x))
        second = down.block(0, first, time, context)
        if len(down.res) == 1:
            second = sites("down.0", second)
        x = up.block(-2, torch.cat([deep, sites("skip.1", second)], dim=1), time, context)
        x = up.block(-1, torch.cat([x, sites("skip.0", first)], dim=1), time, context)
        return unet.conv_out(F.silu(unet.norm_out(sites(f"up.{len(unet.up) - 1}", x))))


class Reusing:
    """The UNet of one walk, of whose calls every n-th is whole; the first one is, and one of another batch size.

    It remembers the last whole call, so that each walk has one of its own; the UNet itself stays as it is. What sites
    add deeper down, such as a ControlNet's residuals, counts in whole calls and stays for those that follow.
    """

    def __init__(self, unet: UNet, every: int):
        self.whole, self.outermost, self.every = unet, Outermost(unet), every
        self.deep: Tensor | None = None           # [b, c, h, w]
        self.left = 0                             # calls that it still serves

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None = None,
                 sites: Sites = NO_SITES) -> Tensor:
        """As the UNet's forward."""
        if self.deep is not None and self.left and len(self.deep) == len(x):
            self.left -= 1
            return self.outermost(x, t, context, label, self.deep, sites)
        own = Sites(sites.add, (*sites.keep, DEEP))
        y = self.whole(x, t, context, label, own)
        self.deep, self.left = own.kept[DEEP], self.every - 1
        sites.kept.update(own.kept)
        return y
