"""Random numbers that depend on the sample and not on the run: a restart or another worker draws the same.

Sample n of a run owns the counter-based stream Philox(seed, n, purpose); nothing is shared between samples.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from minisd.devices import sent


class Purpose(IntEnum):
    """One stream each, so that reading more of one never shifts another."""

    ORDER = 0
    DATA = 1
    TASK = 2
    ROUNDING = 3                                  # of bfloat16 weights; counted by updates


def stream(seed: int, n: int, purpose: Purpose) -> np.random.Generator:
    """The random stream of sample n, or of update n, for one purpose."""
    key = np.array([seed, (n << 2) + purpose], dtype=np.uint64)  # a list would pass large seeds through floats
    return np.random.Generator(np.random.Philox(key=key))


class Draws:
    """The random numbers of one batch: each call draws for all samples, in the order of the calls."""

    def __init__(self, seed: int, numbers: list[int], device: torch.device | str = "cpu"):
        self.streams = [stream(seed, n, Purpose.TASK) for n in numbers]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal [b, *shape]."""
        draws = [s.standard_normal(shape, dtype=np.float32) for s in self.streams]
        return sent(torch.from_numpy(np.stack(draws)), self.device)

    def uniform(self) -> Tensor:
        """Uniform in [0, 1): [b]."""
        return sent(torch.tensor([s.random(dtype=np.float32) for s in self.streams]), self.device)
