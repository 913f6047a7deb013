"""DPM-Solver singlestep: intervals taken in groups, each group walked from its first level with rising order."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from minisd.samplers.exponential import Answer, answer_of, lam, step
from minisd.samplers.loop import Interval, Point
from minisd.samplers.schedule import CLEAN, End, Level, NoiseTable, Schedule

if TYPE_CHECKING:
    from torch import Tensor

# How a step of order 2 weighs the difference of its two answers, and one of order 3 its three: see `extended`.
Slope = Literal["published", "midpoint", "heun"]


@dataclass(frozen=True)
class DPMSinglestep:
    """DPM-Solver (arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095) of Lu et al., singlestep, ODE or SDE.

    A group of `order` intervals is one step of theirs: its levels are the points within the step where the network
    is asked, so that a schedule of n intervals costs n calls, as with every other solver.  On levels even in lambda
    within each group (`thirds`) it is their method to the letter, and with "noise" k-diffusion's sample_dpm_fast.

    What is left over at the end of the walk is a shorter group; three intervals there are a group of two and one of
    one, as in the authors' code.  A step to sigma 0 is of first order.  The noise of the SDE is asked for from the
    group's first level on: only Brownian noise makes one path of it.
    """
    order: Literal[1, 2, 3] = 3
    extrapolate: Answer = "data"
    eta: float = 0.0                    # 0 the ODE, 1 the reverse SDE
    slope: Slope = "published"

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        if s.next.sigma == 0:
            return p.x0
        place, size = self.group(s.index - s.first, len(s.schedule) - 1 - s.first)
        slope = self.slope
        if slope == "published":        # within a group of three the second point is found by the exact integral
            slope = "heun" if (place, size) == (2, 3) else "midpoint"
        points = s.past[-place:]
        x, up = extended(points, s.next, self.extrapolate, slope, self.eta)
        return x + up * s.noise(points[0].level, s.next) if up else x

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1

    def group(self, walked: int, n: int) -> tuple[int, int]:
        """(place, size): which interval of its group, from 1, this one of n is, and how many the group has."""
        start = walked - walked % self.order
        size = min(self.order, n - start)
        if self.order == 3 and start + 3 == n:
            return (walked - start + 1, 2) if walked < n - 1 else (1, 1)
        return walked - start + 1, size


def extended(points: Sequence[Point], to: Level, extrapolate: Answer, slope: Literal["midpoint", "heun"],
             eta: float = 0.0) -> tuple[Tensor, float]:
    """x at `to` by one step from the first of 1 to 3 points, and how much fresh noise belongs to it.

    "heun" integrates the polynomial through the answers.  "midpoint" weighs the difference of two answers by half of
    phi_1 instead of phi_2, and of three it takes the last for the slope, which is exact to order 3 where that point is
    at two thirds of the step.
    """
    start, h = points[0].level, lam(to) - lam(points[0].level)
    keep, gain, phi1, phi2, phi3, up = step(extrapolate, eta, start, to)
    first = answer_of(points[0], extrapolate)
    x = keep * points[0].x + gain * phi1 * first
    r = [(lam(point.level) - lam(start)) / h for point in points[1:]]
    slopes = [(answer_of(point, extrapolate) - first) / at for point, at in zip(points[1:], r, strict=True)]
    if len(slopes) == 1:
        x = x + gain * (phi2 if slope == "heun" else phi1 / 2) * slopes[0]
    elif slopes and slope == "midpoint":
        x = x + gain * phi2 * slopes[1]
    elif slopes:
        curvature = (slopes[1] - slopes[0]) / (r[1] - r[0])      # half the second derivative
        x = x + gain * (phi2 * (slopes[0] - r[0] * curvature) + 2 * phi3 * curvature)
    return x, up


def thirds(table: NoiseTable, n: int, *, last: End = "clean") -> Schedule:
    """DPM fast's: groups of three levels, then of what is left, each group as long in log sigma, its levels even there.

    The last group ends at the first trained level, which is no level of its own unless the walk ends there.
    """
    if not 1 <= n <= table.steps:
        raise ValueError(f"{n} steps over {table.steps} trained noise levels: need 1 to {table.steps}")
    sizes = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    low, high = np.log(table.sigmas[[0, -1]])
    borders = np.linspace(high, low, len(sizes) + 1)
    logs = [above + i / size * (below - above)
            for size, above, below in zip(sizes, borders, borders[1:], strict=False) for i in range(size)]
    return [*(table.at_sigma(math.exp(log)) for log in logs), table.at_t(0) if last == "first" else CLEAN]
