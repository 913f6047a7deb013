"""Random numbers that belong to a picture, not to a batch: streams of its own, on the CPU.

So a picture depends neither on how many are drawn with it, nor on its place among them, nor on the device.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minisd.devices import sent
from minisd.samplers.schedule import Level

Normal = NDArray[np.float32]


class ImageNoise:
    """Standard normal noise [b, *shape] for the images with these seeds, 64 bits each: fresh at every call.

    `draw()` the initial noise first, as the references do with a CPU generator; then hand the object to `sample`
    as its noise.  Numbers are drawn in float32 whatever the dtype asked for, so every dtype sees the same noise.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], *,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.device, self.dtype = tuple(shape), device, dtype
        self._streams = [_stream(seed % 2 ** 64, self.shape) for seed in seeds]

    def draw(self) -> Tensor:
        """The next noise of every image, [b, *shape]."""
        return sent(torch.stack([stream() for stream in self._streams]).to(self.dtype), self.device)

    def __call__(self, now: Level, next: Level) -> Tensor:
        return self.draw()


class BrownianNoise(ImageNoise):
    """The same initial noise; then, for the way between two levels, the increment of one Brownian path per image.

    Steps of any size walk down the same path: the increment between two levels is the same whichever levels are
    visited between them and in whatever order.  So more steps refine a picture instead of drawing another.
    Each increment is divided by its standard deviation, as solvers expect of their noise.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], *,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(seeds, shape, device=device, dtype=dtype)
        self._paths = [BrownianPath(seed % 2 ** 64, self.shape) for seed in seeds]

    def __call__(self, now: Level, next: Level) -> Tensor:
        start, end = place(now.sigma), place(next.sigma)
        if start == end:
            raise ValueError(f"noise from sigma {now.sigma} to {next.sigma}: too close to tell apart")
        deviation = np.float32(math.sqrt(abs(end - start)))
        values = [(path.at(start), path.at(end)) for path in self._paths]      # in this order: the path stands at start
        increments = torch.from_numpy(np.stack([(w - v) / deviation for v, w in values]))
        return sent(increments.to(self.dtype), self.device)


NOISES: dict[str, type[ImageNoise]] = {"fresh": ImageNoise, "brownian": BrownianNoise}

# Places 0 … END are even in log sigma, from 2^TOP down; two of them are a factor of 1.0000013 apart.
TOP, OCTAVES, DEPTH = 16.0, 32.0, 24
END = 2 ** DEPTH


def place(sigma: float) -> int:
    """The place nearest to a sigma; those beyond the ends, such as 0, are at the ends.

    It is also the path's time.  Any clock gives increments that fit together; on this one few steps come nearest to
    many, on Gaussian and on two-point data, with both solvers tried: nearer than with sigma (k-diffusion's clock).
    """
    share = (TOP - math.log2(sigma)) / OCTAVES if sigma > 0 else 1.0
    return min(max(round(share * END), 0), END)


class BrownianPath:
    """One image's Brownian path W, a tree that is never built: only the way down to the last place is kept.

    The value in the middle of two places is the mean of those at both, and half the root of their distance times one
    fresh draw (Lévy's construction).  Each place has a random stream of its own, Philox keyed by the seed and the
    place.  A value costs at most DEPTH draws.
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.seed, self.shape = seed, shape
        last = np.float32(math.sqrt(END)) * self._normal(END)
        self._way = [(0, np.zeros(shape, np.float32), END, last)]      # ever narrower: from, W there, to, W there

    def at(self, wanted: int) -> Normal:
        """W [*shape] at a place; it is 0 at the first one."""
        while not self._way[-1][0] <= wanted <= self._way[-1][2]:
            self._way.pop()
        left, w_left, right, w_right = self._way[-1]
        while wanted not in (left, right):
            middle, half = (left + right) // 2, np.float32(0.5)
            w_middle = half * (w_left + w_right) + half * np.float32(math.sqrt(right - left)) * self._normal(middle)
            if wanted < middle:
                right, w_right = middle, w_middle
            else:
                left, w_left = middle, w_middle
            self._way.append((left, w_left, right, w_right))
        return w_left if wanted == left else w_right

    def _normal(self, at: int) -> Normal:
        return _philox(self.seed, at).standard_normal(self.shape, dtype=np.float32)


def _stream(seed: int, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """Draws of [*shape], one after the other.  torch's CPU generator, which the references use, takes only the lower
    32 bits of a seed: it draws for the seeds that have no others, Philox for the rest."""
    if seed < 2 ** 32:
        generator = torch.Generator("cpu").manual_seed(seed)
        return lambda: torch.randn(shape, generator=generator)
    philox = _philox(seed, 0)
    return lambda: torch.from_numpy(philox.standard_normal(shape, dtype=np.float32))


def _philox(seed: int, number: int) -> np.random.Generator:
    """The counter-based stream of a seed and a number, 64 bits each."""
    key = np.array([seed, number], dtype=np.uint64)               # a list would pass large seeds through floats
    return np.random.Generator(np.random.Philox(key=key))
