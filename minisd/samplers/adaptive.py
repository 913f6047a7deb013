"""DPM adaptive: a solver that measures its own error and chooses its own steps."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from minisd.samplers.exponential import lam
from minisd.samplers.loop import Interval, Point
from minisd.samplers.schedule import Level
from minisd.samplers.singlestep import extended

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 1e-6                             # in lambda: an end this near is reached, a step this short is taken as it is


class Try(NamedTuple):
    """x after a step, by the lower and the higher order."""
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class DPMAdaptive:
    """DPM-Solver-12 or -23 of Lu et al. (arXiv 2206.00927, appendix C): two orders at once, their difference the error.

    The levels of the schedule are stations; between two of them it takes as many steps as the tolerances ask for, so
    few steps in the schedule leave it the freedom it is for.  The error is that of the batch as a whole, so a picture
    is only itself if it is drawn alone.  On its way to sigma 0 it stops at the first trained level.

    On one interval, with first_step 0.05, it is k-diffusion's sample_dpm_adaptive as that is called by default.
    """
    order: Literal[2, 3] = 3            # of the higher one, which is the one that is kept
    rtol: float = 0.05
    atol: float = 0.0078
    first_step: float = 0.5             # in lambda, tried first in every interval
    safety: float = 0.81                # a step is taken if the next may be at least this share as long

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        if s.next.sigma > 0:
            return self._walk(x, s, s.next)
        lowest = min(s.now, s.table.at_t(0))
        return s.denoise(self._walk(x, s, lowest), lowest).x0

    def calls(self, schedule: Sequence[Level]) -> int:
        n = len(schedule) - 1
        return self.order * (n - 1) + 1 if n > 0 and schedule[-1].sigma == 0 else self.order * n

    def _walk(self, x: Tensor, s: Interval, end: Level) -> Tensor:
        now, before, h = s.now, x, self.first_step
        while lam(end) - lam(now) > NEAR:
            now, tried, h = self._step(s.denoise(x, now), before, h, s, end)
            before, x = tried
        return x

    def _step(self, p: Point, before: Tensor, h: float, s: Interval, end: Level) -> tuple[Level, Try, float]:
        """One step from p that is good enough: where it leads, and how long the next may be."""
        left = lam(end) - lam(p.level)
        h = min(h, left)
        while True:
            to = end if left - h < NEAR else _further(p.level, h, s)
            tried = self._tried(p, to, s)
            allowed = (self.rtol * tried.low.abs().maximum(before.abs())).clamp(min=self.atol)
            error = float(((tried.low - tried.high) / allowed).square().mean().sqrt())
            if not math.isfinite(error):            # no shorter step would mend it: the caller finds x not finite
                return to, tried, left
            factor = 1 + math.atan((error + 1e-8) ** (-1 / self.order) - 1)
            if factor >= self.safety or h < NEAR:
                return to, tried, factor * h
            h = factor * h

    def _tried(self, p: Point, to: Level, s: Interval) -> Try:
        """The step by both orders, which share the points within it."""
        h = lam(to) - lam(p.level)
        points = [p]
        for share in (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3):
            level = _further(p.level, share * h, s)
            points.append(s.denoise(extended(points, level, "noise", "heun")[0], level))
        low, high = (extended(some, to, "noise", "midpoint")[0] for some in (points[:-1], points))
        return Try(low, high)


def _further(level: Level, h: float, s: Interval) -> Level:
    """The level h further in lambda."""
    return s.table.at_sigma(level.sigma * math.exp(-h))
