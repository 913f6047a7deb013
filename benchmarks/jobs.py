"""What both libraries are asked to do, and with what: the inputs of every row."""

from dataclasses import dataclass

import torch
from torch import Tensor

PROMPT, NEGATIVE = "a red apple on a wooden table, oil on canvas", "blurry, low quality"
GUIDANCE, SEED, TIMESTEP = 7.5, 0, 500
STEPS, MANY = 4, 20                                   # of a picture, and of a long one


@dataclass(frozen=True)
class Inputs:
    """Of one size and dtype, the same for both libraries."""

    latents: Tensor                                   # [1, 4, side, side]
    context: Tensor                                   # [2, 77, width]: the negative prompt's states, then the prompt's
    dtype: torch.dtype

    @property
    def pair(self) -> Tensor:
        """The latents twice, as guidance has them."""
        return torch.cat([self.latents, self.latents])


def inputs(dtype: torch.dtype, side: int, width: int, window: int = 77) -> Inputs:
    """Latents of side x side, text states of this width."""
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(SEED))
    context = torch.randn(2, window, width, generator=torch.Generator().manual_seed(SEED + 1))
    return Inputs(latents.to(dtype), context.to(dtype), dtype)


def guide(pair: Tensor) -> Tensor:
    """Classifier-free guidance: [2, 4, h, w] -> [1, 4, h, w]."""
    negative, wanted = pair.chunk(2)
    return negative + GUIDANCE * (wanted - negative)
