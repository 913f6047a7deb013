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


def error(solver: Solver, n: int, exact_start: int = 0) -> float:
    """Relative error after n steps even in log sigma; the first `exact_start` of them are given, not computed."""
    schedule = [Level(float(s), 0.0) for s in np.exp(np.linspace(math.log(FROM), math.log(TO), n + 1))]

    def begin_exactly(x: float, s: Interval) -> float:
        return exact(3.0, FROM, s.next.sigma) if s.index < exact_start else x

    got = sample(solver, denoise, 3.0, schedule, NoiseTable(), noise=lambda *_: 0.0, on_step=begin_exactly)
    return abs(got / exact(3.0, FROM, TO) - 1)


@pytest.fixture
def gaussian_error() -> Callable[..., float]:
    return error


@pytest.fixture
def measured_order() -> Callable[..., float]:
    """By what power of two the error falls when the steps are halved."""
    return lambda solver, exact_start=0: math.log2(error(solver, 320, exact_start) / error(solver, 640, exact_start))
