import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from minisd.samplers.loop import Interval, Point, sample, toward
from minisd.samplers.multistep import DPMMultistep
from minisd.samplers.noise import ImageNoise
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, linspace

TABLE = NoiseTable()


@dataclass(frozen=True)
class Watcher:
    """A solver that looks at everything an Interval shows, and asks the network three times."""
    seen: list[Interval]

    def __call__(self, x: float, s: Interval) -> float:
        assert len(s.past) == s.index - s.first, "the past has one point per interval walked"
        first = s.denoise(x)
        assert s.past[-1] is first
        s.denoise(x + 1)                              # a second opinion at the same level
        if not s.last:
            s.denoise(x, s.next)                      # a look ahead
        assert len(s.past) == s.index - s.first + 1 and s.past[-1] is first
        self.seen.append(s)
        return toward(x, first.x0, s.now.sigma, s.next.sigma)

    def calls(self, schedule: Sequence[Level]) -> int:
        return 3 * (len(schedule) - 1) - 1


@pytest.mark.parametrize("first", [0, 2, 4])
def test_an_interval_shows_where_it_is(first: int) -> None:
    schedule, watcher = linspace(TABLE, 5), Watcher([])
    end = sample(watcher, lambda x, level: 0.25, 1.0, schedule, TABLE, noise=None, first=first)
    assert end == 0.25
    assert [s.index for s in watcher.seen] == list(range(first, 5))
    for s in watcher.seen:
        assert (s.now, s.next) == (schedule[s.index], schedule[s.index + 1])
        assert s.left == 5 - s.index and s.last == (s.index == 4) and s.table is TABLE
    assert [point.level for point in watcher.seen[-1].past] == schedule[first:-1]


def test_on_step_may_look_and_replace() -> None:
    schedule, seen = linspace(TABLE, 4), []

    def on_step(x: float, s: Interval) -> float:
        seen.append((s.index, x, s.past[-1].x0))
        return x + 1 if s.index == 3 else x

    plain = sample(Euler(), lambda x, level: 0.5 * x, 3.0, schedule, TABLE, noise=None)
    got = sample(Euler(), lambda x, level: 0.5 * x, 3.0, schedule, TABLE, noise=None, on_step=on_step)
    assert got == plain + 1 and [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert seen[-1][1] == plain == seen[-1][2]


def test_on_step_may_stop_the_walk() -> None:
    def cancel(x: float, s: Interval) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(Euler(), lambda x, level: x, 1.0, linspace(TABLE, 4), TABLE, noise=None, on_step=cancel)


def test_beginning_at_the_end_gives_x_back() -> None:
    assert sample(Euler(), None, 1.5, linspace(TABLE, 4), TABLE, noise=None, first=4) == 1.5


@pytest.mark.parametrize("first", [-1, 5])
def test_beginning_outside_is_refused(first: int) -> None:
    with pytest.raises(ValueError, match="4 intervals"):
        sample(Euler(), lambda x, level: x, 1.0, linspace(TABLE, 4), TABLE, noise=None, first=first)


def test_eps_is_the_noise_that_x0_implies() -> None:
    assert Point(Level(2.0, 500.0), 5.0, 1.0).eps == 2.0


def test_toward_is_a_straight_line_to_x0() -> None:
    assert toward(5.0, 1.0, 2.0, 1.0) == 3.0
    assert toward(5.0, 1.0, 2.0, 0.0) == 1.0
    assert toward(5.0, 1.0, 2.0, CLEAN.sigma) == 1.0


@pytest.mark.parametrize("solver", [Euler(eta=1.0), DPMMultistep(2, eta=1.0), DPMMultistep(3)])
def test_a_picture_does_not_depend_on_its_batch(solver: Euler | DPMMultistep) -> None:
    """Equal bits alone and among others, and whether or not somebody looks on: all the arithmetic is per element."""
    schedule, shape = linspace(TABLE, 7), (4, 5, 5)

    def draw(seeds: Sequence[int], looking: bool = False) -> Tensor:
        noise = ImageNoise(seeds, shape)
        return sample(solver, lambda x, level: torch.tanh(x / level.scale), schedule[0].scale * noise.draw(), schedule,
                      TABLE, noise=noise, on_step=(lambda x, s: x) if looking else None)

    together = draw([7, 8, 9], looking=True)
    for place, seed in enumerate((7, 8, 9)):
        assert torch.equal(draw([seed])[0], together[place])


def test_steps_in_half_precision_stay_in_it() -> None:
    x = torch.full((1, 4, 2, 2), 14.0, dtype=torch.bfloat16)
    end = sample(DPMMultistep(3), lambda x, level: x * 0.5, x, linspace(TABLE, 4), TABLE, noise=None)
    assert end.dtype == torch.bfloat16 and math.isfinite(float(end.sum()))
