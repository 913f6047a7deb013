"""Gaussian data, where the probability-flow ODE has a closed solution: a measure that needs no reference library.

For data N(0, v) the perfect denoiser is x v / (v + sigma^2), and x scales by sqrt((v + to^2) / (v + from^2)).
Solvers are plain arithmetic, so they run on Python floats here.
"""
import math
from collections.abc import Callable

import numpy as np
import pytest

from minisd.samplers.loop import Interval, Solver, sample
from minisd.samplers.schedule import Level, NoiseTable

VARIANCE, FROM, TO = 0.49, 10.0, 0.05


def denoise(x: float, level: Level) -> float:
    return x * VARIANCE / (VARIANCE + level.sigma ** 2)


def exact(x: float, sigma: float, to: float) -> float:
    return x * math.sqrt((VARIANCE + to ** 2) / (VARIANCE + sigma ** 2))


def error(solver: Solver, n: int, exact_start: int = 0, left_out: int = 0) -> float:
    """Relative error after n steps even in log sigma; the first `exact_start` of them are given, not computed.

    With `left_out` it is the error so many steps before the end, where a method has settled down to a lower order.
    """
    schedule = [Level(float(s), 0.0) for s in np.exp(np.linspace(math.log(FROM), math.log(TO), n + 1))]
    errors: list[float] = []

    def on_step(x: float, s: Interval) -> float:
        wanted = exact(3.0, FROM, s.next.sigma)
        errors.append(abs(x / wanted - 1))
        return wanted if s.index < exact_start else x

    sample(solver, denoise, 3.0, schedule, NoiseTable(), noise=lambda *_: 0.0, on_step=on_step)
    return errors[-1 - left_out]


@pytest.fixture
def gaussian_error() -> Callable[..., float]:
    return error


@pytest.fixture
def measured_order() -> Callable[..., float]:
    """By what power of two the error falls when the steps are halved; `left_out` are of the longer ones."""
    def order(solver: Solver, exact_start: int = 0, left_out: int = 0, n: int = 320) -> float:
        return math.log2(error(solver, n, exact_start, left_out) / error(solver, 2 * n, exact_start, 2 * left_out))

    return order
