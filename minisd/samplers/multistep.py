"""Solvers that use what the network said at earlier levels: a higher order for one call per step."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from minisd.samplers.exponential import Answer, answer_of, lam, step
from minisd.samplers.loop import Interval, Point, toward
from minisd.samplers.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LMS:
    """Linear multistep: a polynomial in sigma through the last slopes, integrated over the step; of its order.

    Adams-Bashforth for uneven steps (k-diffusion's sample_lms, which integrates by quadrature).  Its first steps are
    of lower order, as there is no past yet, and so is the measured order of the walk.
    """
    order: int = 4

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        s.denoise(x)
        points = s.past[-self.order:]
        for point, weight in zip(points, self._weights(points, s.next.sigma), strict=True):
            x = x + weight * point.eps
        return x

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1

    @staticmethod
    def _weights(points: list[Point], to: float) -> list[float]:
        """Integrals, from the newest point to sigma `to`, of the polynomials that are 1 at one point and 0 at the rest.

        In steps from the newest point: plain powers of sigma cancel badly where steps are small.
        """
        start, size = points[-1].level.sigma, to - points[-1].level.sigma
        at = [(point.level.sigma - start) / size for point in points]
        weights = []
        for i, own in enumerate(at):
            others = [other for j, other in enumerate(at) if j != i]
            basis = np.atleast_1d(np.poly(others)) / np.prod([own - other for other in others])
            weights.append(size * float(np.polyval(np.polyint(basis), 1.0)))
        return weights


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

    A polynomial through the network's last `order` answers stands in for its answer over the step.  `extrapolate`
    says which answer: "noise" is DPM-Solver, "data" is DPM-Solver++.  A step to sigma 0 is of first order.

    DEIS (Zhang and Chen, arXiv 2204.13902, tAB in log rho) is "noise" with slope "heun" and curvature "exact".

    The third-order method measures order 2 in the authors' code, diffusers and k-diffusion alike: they weigh
    half the second derivative as if it were the whole.  `curvature="exact"` integrates the parabola as it is.
    """
    order: Literal[1, 2, 3] = 2
    extrapolate: Answer = "data"
    eta: float = 0.0                    # 0 the ODE, 1 the reverse SDE (k-diffusion's 2M SDE, diffusers' sde-…)
    slope: Literal["midpoint", "heun"] = "midpoint"           # order 2: the difference weighs phi_1 / 2, or phi_2
    curvature: Literal["published", "exact"] = "published"    # order 3: phi_3, or 2 phi_3
    settle: bool = True                 # under 15 steps the last two are of order 2 and 1, as in the authors' code

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        if s.next.sigma == 0:
            return p.x0
        points = s.past[-self._order_at(s):]
        keep, gain, phi1, phi2, phi3, up = step(self.extrapolate, self.eta, s.now, s.next)
        x = keep * x + gain * phi1 * answer_of(p, self.extrapolate)
        differences = self._differences(points, lam(s.next) - lam(s.now))
        if len(points) == 2:
            x = x + gain * (phi2 if self.slope == "heun" else phi1 / 2) * differences[0]
        elif len(points) == 3:
            half = 2 * phi3 if self.curvature == "exact" else phi3
            x = x + gain * (phi2 * differences[0] + half * differences[1])
        return x + up * s.noise(s.now, s.next) if up else x

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1

    def _order_at(self, s: Interval) -> int:
        few = self.settle and len(s.schedule) - 1 < 15
        return min(self.order, len(s.past), s.left if few else self.order)

    def _differences(self, points: list[Point], h: float) -> list[Tensor]:
        """Slope at the newest of up to 3 points, and half their second derivative, per step h of lambda."""
        at = [lam(point.level) / h for point in points]
        answers = [answer_of(point, self.extrapolate) for point in points]
        slopes = [(new - old) / (b - a) for a, b, old, new in zip(at, at[1:], answers, answers[1:], strict=False)]
        if len(slopes) < 2:
            return slopes
        half = (slopes[1] - slopes[0]) / (at[2] - at[0])
        return [slopes[1] + (at[2] - at[1]) * half, half]
