import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisd.samplers.adaptive import DPMAdaptive
from minisd.samplers.loop import sample
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, exponential, linspace

TABLE = NoiseTable()
VARIANCE = 0.49


def walk(solver: DPMAdaptive, schedule: list[Level], first: int = 0) -> tuple[float, list[Level]]:
    """Relative error of the end for Gaussian data, whose ODE has a closed solution, and where the network was asked."""
    asked: list[Level] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return x * VARIANCE / (VARIANCE + level.sigma ** 2)

    x = torch.tensor([3.0, -8.0], dtype=torch.float64)
    end = sample(solver, denoise, x, schedule, TABLE, noise=None, first=first)
    wanted = x * math.sqrt((VARIANCE + schedule[-1].sigma ** 2) / (VARIANCE + schedule[first].sigma ** 2))
    return float((end / wanted - 1).abs().max()), asked


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("n", [1, 4])
def test_tighter_tolerances_cost_more_calls_and_err_less(order: int, n: int) -> None:
    walks = [walk(DPMAdaptive(order, rtol, rtol / 10), exponential(TABLE, n + 1)[:-1])
             for rtol in (1e-2, 1e-4, 1e-6)]
    errors, calls = [error for error, _ in walks], [len(asked) for _, asked in walks]
    assert errors[2] < 1e-4 and errors[1] > 5 * errors[2] and errors[0] > errors[1]
    assert calls[0] < calls[1] < calls[2]


def test_it_steps_shorter_where_the_picture_is_made() -> None:
    """Long steps where x0 hardly changes, short ones where it does: around sigma = the data's own deviation."""
    _, asked = walk(DPMAdaptive(rtol=1e-4, atol=1e-5), linspace(TABLE, 1, last="first"))
    lams = [-math.log(level.sigma) for level in asked[::3]]
    steps = {round(0.5 * (a + b), 3): b - a for a, b in pairwise(lams)}
    middle = min(steps.items(), key=lambda item: abs(item[0] + math.log(0.7)))[1]
    assert max(steps.values()) > 1.5 * middle


def test_levels_of_the_schedule_are_stations() -> None:
    schedule = exponential(TABLE, 6)
    _, asked = walk(DPMAdaptive(), schedule)
    assert all(level in asked for level in schedule[:-1])


@pytest.mark.parametrize("order", [2, 3])
def test_it_makes_at_least_as_many_calls_as_it_says(order: int) -> None:
    solver = DPMAdaptive(order, rtol=1e3, atol=1e3, first_step=math.inf)
    for n in (1, 2, 7):
        for schedule in (exponential(TABLE, n), linspace(TABLE, n, last="first")):
            assert len(walk(solver, schedule)[1]) >= solver.calls(schedule)
            assert len(walk(DPMAdaptive(order), schedule)[1]) >= solver.calls(schedule)
    assert len(walk(solver, linspace(TABLE, 7, last="first"))[1]) == solver.calls(linspace(TABLE, 7, last="first"))


def test_a_step_that_is_too_long_is_taken_again_shorter() -> None:
    _, asked = walk(DPMAdaptive(rtol=1e-4, atol=1e-5, first_step=3.0), linspace(TABLE, 1, last="first"))
    assert asked[0] == TABLE.at_t(999) and asked.count(asked[0]) == 1, "the first answer serves every try"
    assert asked[1].sigma < asked[3].sigma < asked[0].sigma


def test_to_sigma_0_it_goes_by_the_first_trained_level() -> None:
    error, asked = walk(DPMAdaptive(rtol=1e-3, atol=1e-4), [TABLE.at_t(999), CLEAN])
    assert asked[-1] == TABLE.at_t(0) and all(level.sigma > 0 for level in asked) and error < 1e-2


@pytest.mark.parametrize("first", range(5))
def test_a_walk_may_begin_anywhere(first: int) -> None:
    schedule = linspace(TABLE, 5)
    error, asked = walk(DPMAdaptive(rtol=1e-3, atol=1e-4), schedule, first)
    assert asked[0] == schedule[first] and error < 1e-2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_what_is_not_finite_comes_to_an_end(answer: float) -> None:
    end = sample(DPMAdaptive(), lambda x, level: x * answer, torch.ones(2), linspace(TABLE, 3), TABLE, noise=None)
    assert not end.isfinite().all()


def test_a_network_that_is_not_smooth_comes_to_an_end() -> None:
    """A hundredth of noise in every answer, as of a network in half precision."""
    g, asked = torch.Generator().manual_seed(0), []

    def denoise(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return x - level.sigma * (0.5 + 0.01 * torch.randn(4, generator=g))

    end = sample(DPMAdaptive(), denoise, torch.full((4,), 14.0), linspace(TABLE, 2), TABLE, noise=None)
    assert end.isfinite().all() and len(asked) < 300
