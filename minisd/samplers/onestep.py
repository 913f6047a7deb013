"""Solvers that need nothing but the present point."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisd.samplers.loop import Interval, split, toward
from minisd.samplers.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Euler:
    """Euler's method on dx / dsigma = (x - x0) / sigma; order 1.

    In sigma space three methods are this one, each on its own schedule.  With eta = 0 it is DDIM (Song et al.,
    arXiv 2010.02502, eq. 12); with eta = 1 it is DDPM with the smaller fixed variance (Ho et al., arXiv
    2006.11239, eq. 7) and Euler ancestral (k-diffusion's sample_euler_ancestral).
    """
    eta: float = 0.0                               # noise per step: 0 none, 1 as much as DDPM adds

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        down, up = split(s.now.sigma, s.next.sigma, self.eta)
        x = toward(x, s.denoise(x).x0, s.now.sigma, down)
        return x + up * s.noise(s.now, s.next) if up else x

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1
