"""Weights kept in 8 bits and computed in the usual precision: half the memory of bfloat16, for a little time.

Each output channel has its scale, the largest of its weights over 127. What is rounded is gone: to have it back, load
the model again.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

WIDE = 32                                         # channels: the first and last layers, which have 4, stay as they are
LARGEST = 127


class Eight(nn.Module):
    """A layer whose weight is made from its small one whenever it is asked for."""

    small: Tensor                                 # int8, of the weight's shape
    scale: Tensor                                 # [out, 1, ...]

    @property
    def weight(self) -> Tensor:
        """In the precision of the scale."""
        return self.small.to(self.scale.dtype) * self.scale

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight


class Linear8(Eight, nn.Linear):  # type: ignore[override]
    """A Linear."""


class Conv2d8(Eight, nn.Conv2d):  # type: ignore[override]
    """A convolution."""


SMALL: dict[type[nn.Module], type[Eight]] = {nn.Linear: Linear8, nn.Conv2d: Conv2d8}
FULL = {small: full for full, small in SMALL.items()}


def eight_bit(model: nn.Module, dtype: torch.dtype) -> None:
    """Linears and convolutions into 8 bits, all else into dtype, in which it computes.

    Large weights come last, in the order in which they lie in memory: so what is mapped of a file is let go as it is
    read, for nothing else lies in it any more.
    """
    wide = [cast(nn.Linear | nn.Conv2d, module) for module in model.modules() if is_wide(module)]
    weights = {module.weight for module in wide}
    with torch.inference_mode(False):
        for module in model.modules():
            narrow(module, weights, dtype)
        weights.clear()
        for layer in sorted(wide, key=lambda layer: layer.weight.data_ptr()):
            squeeze(layer, dtype)


def narrow(module: nn.Module, wide: set[Tensor], dtype: torch.dtype) -> None:
    """Its own parameters into dtype, but for the wide ones."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter not in wide:
            setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))


def is_wide(module: nn.Module) -> bool:
    """Whether it is a layer with a weight worth squeezing."""
    return type(module) in SMALL and min(cast(nn.Linear | nn.Conv2d, module).weight.shape[:2]) >= WIDE


def squeeze(module: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
    """Its weight into 8 bits: scales are rounded to dtype first, and the weights to multiples of those."""
    weight = module.weight.detach().float()
    largest = weight.abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(dtype).tiny * LARGEST)
    scale = (largest / LARGEST).to(dtype).view(-1, *[1] * (weight.dim() - 1))
    small = (weight / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    if weight.dim() == 4:
        small = small.to(memory_format=torch.channels_last)
    del module._parameters["weight"]
    module.__class__ = SMALL[type(module)]  # type: ignore[assignment]
    module.register_buffer("small", small, persistent=False)
    module.register_buffer("scale", scale, persistent=False)


def swell(module: Eight) -> None:
    """The layer with a weight of its own again, rounded as it was."""
    weight = module.weight
    module.__class__ = FULL[type(module)]  # type: ignore[assignment]
    del module._buffers["small"], module._buffers["scale"]
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def is_small(model: nn.Module) -> bool:
    """Whether any of its weights are in 8 bits."""
    return any(type(module) in FULL for module in model.modules())
