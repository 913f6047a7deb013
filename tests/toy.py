"""A network for testing samplers: a few numbers, no weights to load, in float64 whatever it is given."""
from collections.abc import Callable

import torch
from torch import Tensor


def toy_unet() -> Callable[[Tensor, Tensor], Tensor]:
    """x [b, 4, h, w], t [b] -> the same shape: two layers per pixel, not linear, different at every timestep.

    Its output is of about unit size, as a network's that predicts noise.
    """
    g = torch.Generator().manual_seed(3)
    into, out = (torch.randn(shape, generator=g, dtype=torch.float64) / 2 for shape in ((8, 4), (4, 8)))
    phase = torch.arange(8, dtype=torch.float64).view(8, 1)

    def unet(x: Tensor, t: Tensor, *_: object) -> Tensor:
        t = t.to(torch.float32).to(torch.float64).view(-1, 1, 1)          # as a UNet's timestep features take it
        pixels = x.to(torch.float64).flatten(2)                           # [b, c, h, w] -> [b, c, h w]
        hidden = torch.tanh(into @ pixels + torch.sin(t / 150 + phase))
        return (out @ hidden + 0.4 * pixels).view_as(x).to(x.dtype)

    return unet


def noise_list(count: int, shape: tuple[int, ...]) -> list[Tensor]:
    """Standard normal, in float64, of values that float32 has too."""
    g = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=g, dtype=torch.float32).double() for _ in range(count)]
