"""The only sampling loop, and what a solver sees while it walks from one noise level to the next.

A solver is a frozen dataclass of options, called on x and one Interval.  It asks for x0 as often as it needs
and returns x at `s.next`.  It keeps nothing: the past is in the Interval, so any step can be tested alone.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from minisd.samplers.schedule import Level, NoiseTable

if TYPE_CHECKING:      # solvers are plain arithmetic: a program can list and check their names without torch
    from torch import Tensor

    from minisd.samplers.denoiser import Denoiser


class Noise(Protocol):
    """Standard normal noise like x, for the way between two levels (which only Brownian noise looks at)."""
    def __call__(self, now: Level, next: Level, /) -> Tensor: ...


class Point(NamedTuple):
    """What the network once said: at `level`, of x, that the clean picture is x0."""
    level: Level
    x: Tensor                                                    # [b, c, h, w]
    x0: Tensor                                                   # [b, c, h, w]

    @property
    def eps(self) -> Tensor:
        """The noise that x0 implies, which is also the slope dx / dsigma.  There is none at sigma 0."""
        return (self.x - self.x0) / self.level.sigma


@dataclass(frozen=True)
class Interval:
    """All a solver may know on its way from `now` to `next`."""
    index: int                         # this interval's place in the schedule
    first: int                         # where the walk began (img2img: above 0)
    schedule: Sequence[Level]
    table: NoiseTable
    past: list[Point]                  # one point per interval walked; this one's joins with its first answer
    noise: Noise
    model: Denoiser

    @property
    def now(self) -> Level:
        return self.schedule[self.index]

    @property
    def next(self) -> Level:
        return self.schedule[self.index + 1]

    @property
    def left(self) -> int:
        """Intervals still to walk, this one included."""
        return len(self.schedule) - 1 - self.index

    @property
    def last(self) -> bool:
        return self.left == 1

    def denoise(self, x: Tensor, level: Level | None = None) -> Point:
        """Ask the network, at `now` or another level.  The first answer of an interval enters the past, no other."""
        level = self.now if level is None else level
        point = Point(level, x, self.model(x, level))
        if len(self.past) == self.index - self.first:
            self.past.append(point)
        return point


class Solver(Protocol):
    """One sampling method."""
    def __call__(self, x: Tensor, s: Interval, /) -> Tensor:
        """x at `s.now` -> x at `s.next`."""

    def calls(self, schedule: Sequence[Level], /) -> int:
        """How many times the network is asked on the way down this schedule; `schedule[first:]` for img2img.

        For a solver that chooses its own steps (`DPMAdaptive`), the fewest: how many depends on the picture.
        """


def sample(solver: Solver, denoise: Denoiser, x: Tensor, schedule: Sequence[Level], table: NoiseTable, *,
           noise: Noise, first: int = 0,
           on_step: Callable[[Tensor, Interval], Tensor] | None = None) -> Tensor:
    """Walk x [b, c, h, w] from `schedule[first]` down to the last level, and return it.

    x is in sigma space: `schedule[0].scale * noise` for a new picture, `x0 + schedule[first].sigma * noise` to
    start from one.  `on_step(x, s) -> x` is called after each interval: to look, to replace, to raise.
    """
    if not 0 <= first < len(schedule):
        raise ValueError(f"first is {first}, but the schedule has {len(schedule) - 1} intervals")
    past: list[Point] = []
    for index in range(first, len(schedule) - 1):
        s = Interval(index, first, schedule, table, past, noise, denoise)
        x = solver(x, s)
        if on_step is not None:
            x = on_step(x, s)
    return x


# ---------------------------------------------------------------- the two moves that solvers are made of
def toward(x: Tensor, x0: Tensor, sigma: float, to: float) -> Tensor:
    """x at sigma `to`, exactly as the probability-flow ODE has it if x0 stays constant: Euler, DDIM, DPM-1."""
    return x0 + (to / sigma) * (x - x0)


def split(sigma: float, to: float, eta: float) -> tuple[float, float]:
    """(down, up): step to sigma `down` without noise, add fresh noise times `up`, and the level is `to`.

    With eta = 1 `up` is the deviation of DDPM's posterior (Ho et al., arXiv 2006.11239, eq. 7), which is eq. 16
    of DDIM (arXiv 2010.02502) in sigma space; with eta = 0 there is no noise.
    """
    up = min(to, eta * (to ** 2 * (sigma ** 2 - to ** 2) / sigma ** 2) ** 0.5)
    return (to ** 2 - up ** 2) ** 0.5, up
