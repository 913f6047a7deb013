"""Solvers that need nothing but the interval they are on: any step of theirs can be the first."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisd.samplers.churn import CALM, Churn
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
    churn: Churn = CALM

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        x, now = self.churn(x, s)
        down, up = split(now.sigma, s.next.sigma, self.eta)
        x = toward(x, s.denoise(x, now).x0, now.sigma, down)
        return _noised(x, up, s)

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1


@dataclass(frozen=True)
class Heun:
    """Euler's step, then again with the mean of the slopes at both its ends; order 2.

    Karras et al. (arXiv 2206.00364, algorithm 2).  A step to sigma 0 is Euler's: there is no slope at its end.
    """
    churn: Churn = CALM

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        x, now = self.churn(x, s)
        p = s.denoise(x, now)
        guess = toward(x, p.x0, now.sigma, s.next.sigma)
        if s.next.sigma == 0:
            return guess
        slope = (p.eps + s.denoise(guess, s.next).eps) / 2
        return x + (s.next.sigma - now.sigma) * slope

    def calls(self, schedule: Sequence[Level]) -> int:
        return _twice_but_to_clean(schedule)


@dataclass(frozen=True)
class DPM2:
    """The slope at the middle of the step, in log sigma, for the whole of it; order 2.

    k-diffusion's sample_dpm_2 and, with eta = 1, sample_dpm_2_ancestral; a cousin of DPM-Solver-2.
    """
    eta: float = 0.0
    churn: Churn = CALM

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        x, now = self.churn(x, s)
        p = s.denoise(x, now)
        down, up = split(now.sigma, s.next.sigma, self.eta)
        if down == 0:
            return p.x0
        middle = s.table.at_sigma(_between(now.sigma, down))
        q = s.denoise(toward(x, p.x0, now.sigma, middle.sigma), middle)
        return _noised(x + (down - now.sigma) * q.eps, up, s)

    def calls(self, schedule: Sequence[Level]) -> int:
        return _twice_but_to_clean(schedule)


@dataclass(frozen=True)
class DPMpp2S:
    """DPM-Solver++(2S) of Lu et al. (arXiv 2211.01095, algorithm 1), ancestral by eta; order 2 without noise.

    The x0 seen from the middle of the step, in log sigma, stands for the whole of it.  With eta = 1 it is
    k-diffusion's sample_dpmpp_2s_ancestral.
    """
    eta: float = 1.0

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        down, up = split(s.now.sigma, s.next.sigma, self.eta)
        if down == 0:
            return p.x0
        middle = s.table.at_sigma(_between(s.now.sigma, down))
        q = s.denoise(toward(x, p.x0, s.now.sigma, middle.sigma), middle)
        return _noised(toward(x, q.x0, s.now.sigma, down), up, s)

    def calls(self, schedule: Sequence[Level]) -> int:
        return _twice_but_to_clean(schedule)


@dataclass(frozen=True)
class DPMppSDE:
    """DPM-Solver++ with fresh noise at the middle of the step as well as at its end (k-diffusion's sample_dpmpp_sde).

    The two are noise of overlapping intervals, now to middle and now to next: only a noise that looks at its levels,
    Brownian motion, makes them one path.
    """
    eta: float = 1.0
    r: float = 0.5                                 # where the middle is, in log sigma

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        if s.next.sigma == 0:
            return p.x0
        middle = s.table.at_sigma(_between(s.now.sigma, s.next.sigma, self.r))
        down, up = split(s.now.sigma, middle.sigma, self.eta)
        halfway = toward(x, p.x0, s.now.sigma, down)
        q = s.denoise(halfway + up * s.noise(s.now, middle) if up else halfway, middle)

        x0 = p.x0 + (q.x0 - p.x0) / (2 * self.r)
        down, up = split(s.now.sigma, s.next.sigma, self.eta)
        return _noised(toward(x, x0, s.now.sigma, down), up, s)

    def calls(self, schedule: Sequence[Level]) -> int:
        return _twice_but_to_clean(schedule)


def _noised(x: Tensor, up: float, s: Interval) -> Tensor:
    return x + up * s.noise(s.now, s.next) if up else x


def _between(sigma: float, to: float, r: float = 0.5) -> float:
    """The level at r of the way in log sigma."""
    return math.exp((1 - r) * math.log(sigma) + r * math.log(to))


def _twice_but_to_clean(schedule: Sequence[Level]) -> int:
    """Two calls an interval, and one on the last where it ends at sigma 0."""
    n = len(schedule) - 1
    return 2 * n - 1 if n > 0 and schedule[-1].sigma == 0 else 2 * n
