"""Solvers that use what the network said at earlier levels: a higher order for one call per step."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minisd.samplers.loop import Interval, Point, toward
from minisd.samplers.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PLMS:
    """Pseudo linear multistep: PNDM without its Runge-Kutta start, as Stable Diffusion runs it.

    Liu et al., arXiv 2202.09778: in sigma space their transfer (eq. 11) is a straight line, and what is left is
    Adams-Bashforth (eq. 12).  Its weights take the steps for equal, which in sigma they are not: it is of order
    2, not 4.  The first step looks one level ahead and averages, hence n + 1 calls for n > 1 steps.
    """

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        if len(s.past) == 1:
            return self._start(x, p, s)
        e = [point.eps for point in s.past[:-5:-1]]              # newest first, at most 4
        if len(e) == 2:
            slope = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            slope = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            slope = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        return x + (s.next.sigma - s.now.sigma) * slope

    @staticmethod
    def _start(x: Tensor, p: Point, s: Interval) -> Tensor:
        """Heun's step; where there is only one interval, Euler's, as there is no level to look ahead to."""
        guess = toward(x, p.x0, s.now.sigma, s.next.sigma)
        if s.last:
            return guess
        ahead = s.denoise(guess, s.next)
        return x + (s.next.sigma - s.now.sigma) * (p.eps + ahead.eps) / 2

    def calls(self, schedule: Sequence[Level]) -> int:
        n = len(schedule) - 1
        return n + 1 if n > 1 else n


@dataclass(frozen=True)
class DPMMultistep:
    """DPM-Solver (arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095) of Lu et al., multistep, ODE or SDE.

    In lambda = -log(sigma) the linear part of the ODE is exact.  What is left is an integral of the network's
    answer, and a polynomial through the last `order` answers stands in for it.  `extrapolate` says which answer:
    "noise" is DPM-Solver, "data" is DPM-Solver++.  A step to sigma 0 is of first order.

    The third-order method measures order 2 in the authors' code, diffusers and k-diffusion alike: they weigh
    half the second derivative as if it were the whole.  `curvature="exact"` integrates the parabola as it is.
    """
    order: Literal[1, 2, 3] = 2
    extrapolate: Literal["data", "noise"] = "data"
    eta: float = 0.0                    # 0 the ODE, 1 the reverse SDE (k-diffusion's 2M SDE, diffusers' sde-…)
    slope: Literal["midpoint", "heun"] = "midpoint"           # order 2: the difference weighs phi_1 / 2, or phi_2
    curvature: Literal["published", "exact"] = "published"    # order 3: phi_3, or 2 phi_3
    settle: bool = True                 # under 15 steps the last two are of order 2 and 1, as in the authors' code

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        if s.next.sigma == 0:
            return p.x0
        h = _lam(s.next) - _lam(s.now)
        x = self._mean(x, s.past[-self._order_at(s):], s.next, h)
        if self.eta == 0:
            return x
        if self.extrapolate == "data":
            variance = -math.expm1(-2 * self.eta * h)
        else:
            variance = self.eta * math.expm1(2 * h)
        return x + s.next.sigma * math.sqrt(variance) * s.noise(s.now, s.next)

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1

    def _order_at(self, s: Interval) -> int:
        few = self.settle and len(s.schedule) - 1 < 15
        return min(self.order, len(s.past), s.left if few else self.order)

    def _mean(self, x: Tensor, points: list[Point], to: Level, h: float) -> Tensor:
        """x at `to` before fresh noise.  phi_1, phi_2, phi_3 are the integrals of 1, u, u^2 / 2 over the step."""
        if self.extrapolate == "data":                           # DPM-Solver++, eq. 8
            z = (1 + self.eta) * h
            keep, gain, phi1 = math.exp(-z), 1.0, -math.expm1(-z)
            phi2 = 1 - phi1 / z
            phi3 = 0.5 - phi2 / z
            answers = [point.x0 for point in points]
        else:                                                    # DPM-Solver, eq. 3.7
            keep, gain, phi1 = 1.0, -(1 + self.eta) * to.sigma, math.expm1(h)
            phi2 = phi1 / h - 1
            phi3 = phi2 / h - 0.5
            answers = [point.eps for point in points]
        x = keep * x + gain * phi1 * answers[-1]
        if len(points) == 1:
            return x
        d1, d2 = _differences(points, answers, h)
        if d2 is None:
            return x + gain * (phi2 if self.slope == "heun" else phi1 / 2) * d1
        return x + gain * (phi2 * d1 + (2 * phi3 if self.curvature == "exact" else phi3) * d2)


def _lam(level: Level) -> float:
    """Half the log signal-to-noise ratio: the time DPM-Solver thinks in."""
    return -math.log(level.sigma)


def _differences(points: list[Point], answers: list[Tensor], h: float) -> tuple[Tensor, Tensor | None]:
    """Slope at the newest of 2 or 3 answers, and half their second derivative, per step h of lambda."""
    r0 = (_lam(points[-1].level) - _lam(points[-2].level)) / h
    new = (answers[-1] - answers[-2]) / r0
    if len(points) == 2:
        return new, None
    r1 = (_lam(points[-2].level) - _lam(points[-3].level)) / h
    old = (answers[-2] - answers[-3]) / r1
    d2 = (new - old) / (r0 + r1)
    return new + r0 * d2, d2
