"""Churn: a little fresh noise before each step, which lets a deterministic solver forget its earlier errors."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisd.samplers.loop import Interval
from minisd.samplers.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Churn:
    """S_churn, S_tmin, S_tmax and S_noise of Karras et al. (arXiv 2206.00364, algorithm 2)."""
    amount: float = 0.0                # over the whole walk; each step raises sigma by at most the factor sqrt(2)
    low: float = 0.0                   # levels below and above these are left as they are
    high: float = math.inf
    noise: float = 1.0                 # deviation of the fresh noise; a little over 1 makes up for lost detail

    def __call__(self, x: Tensor, s: Interval) -> tuple[Tensor, Level]:
        """x at a level above `s.now`, and that level; where there is nothing to stir, x at `s.now`."""
        walked = len(s.schedule) - 1 - s.first
        gamma = min(self.amount / walked, math.sqrt(2) - 1) if self.low <= s.now.sigma <= self.high else 0.0
        if gamma == 0:
            return x, s.now
        raised = s.table.at_sigma(s.now.sigma * (1 + gamma))
        added = math.sqrt(raised.sigma ** 2 - s.now.sigma ** 2)
        return x + self.noise * added * s.noise(s.now, s.next), raised


CALM = Churn()
