"""Random numbers that belong to a picture, not to a batch: one generator per image, on the CPU.

So a picture depends neither on how many are drawn with it, nor on its place among them, nor on the device.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.samplers.schedule import Level


class ImageNoise:
    """Standard normal noise [b, *shape] for the images with these seeds.

    `draw()` the initial noise first, as the references do with a CPU generator; then hand the object to `sample`
    as its noise.  Numbers are drawn in float32 whatever the dtype asked for, so every dtype sees the same noise.
    A generator takes the lower 32 bits of a seed: seeds 2^32 apart are the same.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], *,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.device, self.dtype = tuple(shape), device, dtype
        self._generators = [torch.Generator("cpu").manual_seed(seed % 2 ** 64) for seed in seeds]

    def draw(self) -> Tensor:
        """The next noise of every image, [b, *shape]."""
        one_each = [torch.randn(self.shape, generator=generator) for generator in self._generators]
        return torch.stack(one_each).to(self.device, self.dtype)

    def __call__(self, now: Level, next: Level) -> Tensor:
        return self.draw()
