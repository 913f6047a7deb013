"""UniPC: each step is predicted from the past, and corrected once the network has been asked at its end."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from minisd.samplers.exponential import Answer, answer_of, lam, step
from minisd.samplers.loop import Interval, Point
from minisd.samplers.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniPC:
    """Zhao et al., arXiv 2302.04867: the answer that the next step needs anyway also corrects the one before.

    `order` answers predict (algorithm 6), one more corrects (algorithm 5), so a walk costs one call per step.  Where
    there is but one difference of answers its weight is a half of B(h), which is h in "bh1" and e^h - 1 in "bh2";
    with more, the weights integrate a polynomial exactly and B cancels.  The last steps are of falling order.
    """
    order: int = 2
    weight: Literal["bh1", "bh2"] = "bh2"
    extrapolate: Answer = "data"

    def __call__(self, x: Tensor, s: Interval) -> Tensor:        # [b, c, h, w] -> [b, c, h, w]
        p = s.denoise(x)
        before = s.past[:-1]
        if before:
            x = self._moved(before[-self._order_at(s, s.index - 1):], s.now, p)
            s.past[-1] = self._corrected(p, x)
        if s.next.sigma == 0:
            return s.past[-1].x0
        return self._moved(s.past[-self._order_at(s, s.index):], s.next)

    def calls(self, schedule: Sequence[Level]) -> int:
        return len(schedule) - 1

    def _order_at(self, s: Interval, index: int) -> int:
        return min(self.order, index - s.first + 1, len(s.schedule) - 1 - index)

    def _corrected(self, p: Point, x: Tensor) -> Point:
        """The same answer, of another x."""
        if self.extrapolate == "data":
            return p._replace(x=x)
        return p._replace(x=x, x0=x - p.level.sigma * p.eps)

    def _moved(self, points: Sequence[Point], to: Level, seen: Point | None = None) -> Tensor:
        """x at `to`: predicted from the points, the last of which it starts from; corrected if `to` has been seen."""
        start = points[-1]
        h = lam(to) - lam(start.level)
        keep, gain, phi1, *_ = step(self.extrapolate, 0.0, start.level, to)
        first = answer_of(start, self.extrapolate)
        x = keep * start.x + gain * phi1 * first

        others = [*points[-2::-1], *([seen] if seen is not None else [])]
        r = [(lam(point.level) - lam(start.level)) / h for point in others]
        if len(others) == 1:
            weights = [0.5 * (h if self.weight == "bh1" else phi1)]
        else:
            powers = np.array([[at ** k for at in r] for k in range(len(r))])
            weights = np.linalg.solve(powers, self._moments(phi1, h, len(r))).tolist() if others else []
        for point, at, weight in zip(others, r, weights, strict=True):
            x = x + gain * weight / at * (answer_of(point, self.extrapolate) - first)
        return x

    def _moments(self, phi1: float, h: float, count: int) -> list[float]:
        """Integrals of u, u^2, … over the step, from that of 1, by parts; weighed as the answer is."""
        moments = [phi1]
        for k in range(1, count + 1):
            ratio = k * moments[-1] / h
            moments.append(1 - ratio if self.extrapolate == "data" else ratio - 1)
        return moments[1:]
