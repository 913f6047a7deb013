"""Solvers for networks distilled to jump: each step goes nearly to the picture at once, and then back up by noise."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minisd.samplers.loop import Interval, toward
from minisd.samplers.schedule import End, Level, NoiseTable, Schedule, trailing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LCM:
    """Latent consistency model (Luo et al., arXiv 2310.04378, algorithm 3): to the picture, then fresh noise to `next`.

    The picture is a mixture of x0 and x that becomes x itself at timestep 0 (eq. 9 and appendix B): at every timestep
    that is used it is x0 to seven digits.
    """
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        t = self.timestep_scaling * s.now.t
        skip = self.sigma_data ** 2 / (t ** 2 + self.sigma_data ** 2)
        out = t / math.sqrt(t ** 2 + self.sigma_data ** 2)
        picture = out * s.denoise(x).x0 + skip / s.now.scale * x
        return picture if s.next.sigma == 0 else picture + s.next.sigma * s.noise(s.now, s.next)

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1


@dataclass(frozen=True)
class TCD:
    """Trajectory consistency distillation (Zheng et al., arXiv 2402.19159, algorithm 4).

    Down along the ODE to a level below `next`, at timestep (1 - gamma) t, then fresh noise up to it.  gamma 0 is
    DDIM, gamma 1 goes to the first trained level each time.
    """
    gamma: float = 0.3

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        down = self._below(s)
        x = toward(x, s.denoise(x).x0, s.now.sigma, down)
        if s.last or down == s.next.sigma:
            return x
        return x + math.sqrt(s.next.sigma ** 2 - down ** 2) * s.noise(s.now, s.next)

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1

    def _below(self, s: Interval) -> float:
        """The sigma to go down to, of a whole timestep; a level whose timestep is rounded up must not be passed."""
        if s.last or self.gamma == 0:
            return s.next.sigma
        return min(s.next.sigma, s.table.at_t(math.floor((1 - self.gamma) * s.next.t)).sigma)


def distilled(table: NoiseTable, n: int, *, last: End = "clean", origin: int = 50) -> Schedule:
    """n of the `origin` timesteps that an LCM or TCD was distilled on, as even as whole places allow.

    Those are counted down from the noisiest; asked for more steps than there are, it counts down in n.
    """
    known = trailing(table, max(n, min(origin, table.steps)), last=last)
    places = np.linspace(0, len(known) - 1, n, endpoint=False).astype(int)
    return [*(known[i] for i in places), known[-1]]
