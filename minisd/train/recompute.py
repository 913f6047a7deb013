"""Activations made again on the way back in place of being kept (Chen et al., arXiv 1604.06174): it takes longer, and
of a UNet's blocks only what goes in stays in memory.

As with `minisd.fast.passes` a module keeps its place, its name and its parameters; only its class changes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minisd.layers import ResBlock, Transformer2D


def again(forward: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """The output of a block without randomness, which is computed again when its gradient is wanted."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    found: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found


class RecomputedResBlock(ResBlock):
    """A ResBlock that keeps its inputs."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # [b, c_in, h, w] -> [b, c_out, h, w]
        return again(super().forward, x, time)


class RecomputedTransformer2D(Transformer2D):
    """A Transformer2D that keeps its inputs."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # [b, dim, h, w] -> [b, dim, h, w]
        return again(super().forward, x, context)


LIGHTER: Mapping[type[nn.Module], type[nn.Module]] = {
    ResBlock: RecomputedResBlock, Transformer2D: RecomputedTransformer2D}


def lighten(module: nn.Module) -> None:
    """Every block in a module that is to be trained."""
    for block in module.modules():
        block.__class__ = LIGHTER.get(type(block), type(block))
