import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from minisd.samplers.churn import Churn
from minisd.samplers.loop import Solver, sample
from minisd.samplers.onestep import DPM2, Euler, Heun
from minisd.samplers.schedule import Level, NoiseTable, exponential, karras

TABLE = NoiseTable()
CHURNED = [Euler, Heun, DPM2]


def walk(solver: Solver, first: int = 0, n: int = 8) -> tuple[list[Level], list[tuple[Level, Level]], list[Level]]:
    """The levels that the network was asked at, the noise asked for, and the levels of the past."""
    asked, noises, past = [], [], []

    def keep(x: float, s: object) -> float:
        past[:] = [point.level for point in s.past]
        return x

    sample(solver, lambda x, level: asked.append(level) or 0.5 * x, 1.0, karras(TABLE, n), TABLE,
           noise=lambda *pair: noises.append(pair) or 0.0, first=first, on_step=keep)
    return asked, noises, past


def test_each_step_begins_a_little_higher() -> None:
    schedule = karras(TABLE, 8)
    asked, noises, past = walk(Euler(churn=Churn(2.0)))
    assert [level.sigma for level in asked] == pytest.approx([1.25 * level.sigma for level in schedule[:-1]])
    assert noises == list(pairwise(schedule)) and past == asked
    assert [level.t for level in asked] == [TABLE.at_sigma(level.sigma).t for level in asked]
    assert asked[0].t == 999                                     # the table has nothing higher to tell


def test_it_is_shared_out_over_the_steps_that_are_walked() -> None:
    asked, *_ = walk(Euler(churn=Churn(2.0)), first=3)
    assert asked[0].sigma == pytest.approx(karras(TABLE, 8)[3].sigma * (1 + 2 / 5))


def test_no_step_is_raised_by_more_than_the_root_of_two() -> None:
    asked, *_ = walk(Euler(churn=Churn(100.0)))
    assert asked[0].sigma == pytest.approx(karras(TABLE, 8)[0].sigma * math.sqrt(2))


def test_levels_outside_the_bounds_are_left_alone() -> None:
    schedule = karras(TABLE, 8)
    low, high = schedule[5].sigma, schedule[2].sigma
    asked, noises, _ = walk(Euler(churn=Churn(2.0, low, high)))
    raised = [asked[i].sigma > 1.1 * schedule[i].sigma for i in range(8)]
    assert raised == [False] * 2 + [True] * 4 + [False] * 2 and len(noises) == 4


@pytest.mark.parametrize("solver", CHURNED)
def test_without_churn_no_noise_is_asked_for(solver: Callable[..., Solver]) -> None:
    _, noises, past = walk(solver())
    assert noises == [] and past == karras(TABLE, 8)[:-1]


@pytest.mark.parametrize("solver", CHURNED)
def test_x_gains_the_noise_of_the_level_it_is_raised_to(solver: Callable[..., Solver]) -> None:
    """A network that knows the picture: x at the raised level is what it was and the noise between."""
    now, later, picture = TABLE.at_t(600), TABLE.at_t(300), 0.7
    seen: list[tuple[float, Level]] = []

    def denoise(x: float, level: Level) -> float:
        seen.append((x, level))
        return picture

    end = sample(solver(churn=Churn(0.3, noise=1.1)), denoise, picture, [now, later], TABLE, noise=lambda *_: 2.0)
    x, raised = seen[0]
    added = 1.1 * 2.0 * math.sqrt(raised.sigma ** 2 - now.sigma ** 2)
    assert raised.sigma == pytest.approx(1.3 * now.sigma)
    assert x == pytest.approx(picture + added)
    assert end == pytest.approx(picture + added * later.sigma / raised.sigma)
    assert solver(churn=Churn(0.3)).calls([now, later]) == len(seen)


@pytest.mark.parametrize("solver", [Heun, DPM2])
def test_it_keeps_the_distribution(solver: Callable[..., Solver]) -> None:
    """Samples of N(0, v) end as they should: a step is linear in x and its noise, so the variance is followed."""
    def variance_error(n: int, v: float = 0.49) -> float:
        schedule = exponential(TABLE, n + 1)[:-1]
        variance = v + schedule[0].sigma ** 2
        for pair in pairwise(schedule):
            of_x, of_noise = (sample(solver(churn=Churn(40 / n)), lambda x, level: x * v / (v + level.sigma ** 2), x,
                                     pair, TABLE, noise=lambda *_, z=z: z) for x, z in ((1.0, 0.0), (0.0, 1.0)))
            variance = of_x ** 2 * variance + of_noise ** 2
        return variance / (v + schedule[-1].sigma ** 2) - 1

    assert 0 < variance_error(400) < 0.002 and variance_error(100) > 10 * variance_error(400)
