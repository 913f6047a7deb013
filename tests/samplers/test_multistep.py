import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from minisd.samplers.loop import Interval, Point, sample
from minisd.samplers.multistep import LMS, PLMS, DPMMultistep
from minisd.samplers.noise import ImageNoise
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import Level, NoiseTable, karras, leading, linspace

TABLE = NoiseTable()
DEIS = {k: DPMMultistep(k, "noise", slope="heun", curvature="exact") for k in (2, 3)}
ORDERS = {
    "lms 1": (LMS(1), 1),
    "lms 2": (LMS(2), 2),
    "deis 2": (DEIS[2], 2),
    "deis 3": (DEIS[3], 2),
    "plms": (PLMS(), 2),
    "dpm++1": (DPMMultistep(1), 1),
    "dpm++2m": (DPMMultistep(2), 2),
    "dpm++2m heun": (DPMMultistep(2, slope="heun"), 2),
    "dpm++3m": (DPMMultistep(3), 2),
    "dpm-solver 1": (DPMMultistep(1, "noise"), 1),
    "dpm-solver 2m": (DPMMultistep(2, "noise"), 2),
    "dpm-solver 2m heun": (DPMMultistep(2, "noise", slope="heun"), 2),
    "dpm-solver 3m": (DPMMultistep(3, "noise"), 2),
}


# ---------------------------------------------------------------- order
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str, measured_order: Callable[..., float]) -> None:
    solver, order = ORDERS[name]
    assert measured_order(solver) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_has_its_order_once_it_has_a_past(order: int, measured_order: Callable[..., float]) -> None:
    """Given an exact start: its first steps are of lower order for want of a past."""
    assert measured_order(LMS(order), exact_start=order - 1) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("extrapolate", ["data", "noise"])
def test_the_third_order_is_third_only_with_the_exact_curvature(
        extrapolate: str, measured_order: Callable[..., float], gaussian_error: Callable[..., float]) -> None:
    """Given an exact start, so that its first-order first step does not count, the published weight still has 2."""
    published, exact = (DPMMultistep(3, extrapolate, curvature=c) for c in ("published", "exact"))
    assert measured_order(published, exact_start=2) == pytest.approx(2, abs=0.1)
    assert measured_order(exact, exact_start=2) == pytest.approx(3, abs=0.25)
    for n in (20, 50):
        assert gaussian_error(exact, n) < 0.3 * gaussian_error(published, n)


@pytest.mark.parametrize(("extrapolate", "eta", "order"),
                         list(itertools.product(["data", "noise"], [0.0, 1.0], [1, 2, 3])))
def test_a_polynomial_of_one_degree_less_is_integrated_exactly(extrapolate: str, eta: float, order: int) -> None:
    """The answers are a polynomial in lambda; one step, without noise, against numerical integration."""
    schedule = [Level(sigma, 0.0) for sigma in (5.0, 3.1, 2.2, 1.4)]
    coefficients = (0.3, 0.7, -0.9)[:order]

    def answer(lam: float) -> float:
        return sum(c * lam ** k for k, c in enumerate(coefficients))

    def point(level: Level, x: float) -> Point:
        value = answer(-math.log(level.sigma))
        return Point(level, x, value if extrapolate == "data" else x - level.sigma * value)

    x, now, to = 1.7, schedule[2], schedule[3]
    s = Interval(2, 0, schedule, TABLE, [point(level, x) for level in schedule[:2]], lambda *_: 0.0,
                 lambda x, level: point(level, x).x0)
    solver = DPMMultistep(order, extrapolate, eta, slope="heun", curvature="exact", settle=False)

    lam = np.linspace(-math.log(now.sigma), -math.log(to.sigma), 200_001)
    values, power = answer(lam), 1 + eta
    if extrapolate == "data":           # dx = power (x - x0) d log sigma
        wanted = ((to.sigma / now.sigma) ** power * x
                  + np.trapezoid(power * np.exp(power * (lam - lam[-1])) * values, lam))
    else:                               # dx = power eps dsigma
        wanted = x - np.trapezoid(power * np.exp(-lam) * values, lam)
    assert solver(x, s) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_integrates_a_polynomial_in_sigma_exactly(order: int) -> None:
    schedule = [Level(sigma, 0.0) for sigma in (5.0, 3.1, 2.2, 1.4, 0.9)]
    slope = np.polynomial.Polynomial([0.3, 0.7, -0.9, 0.2][:order])
    past = [Point(level, 0.0, -level.sigma * slope(level.sigma)) for level in schedule[:3]]
    x, now, to = 1.7, schedule[3], schedule[4]
    s = Interval(3, 0, schedule, TABLE, past, lambda *_: 0.0, lambda x, level: x - level.sigma * slope(level.sigma))
    area = slope.integ()
    assert LMS(order)(x, s) == pytest.approx(x + area(to.sigma) - area(now.sigma), rel=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_is_the_polynomial_of_epsilon_in_log_sigma(order: int) -> None:
    """tAB in log rho (arXiv 2204.13902): Lagrange's polynomials of log sigma, integrated in sigma numerically."""
    schedule = [Level(sigma, 0.0) for sigma in (5.0, 3.1, 2.2, 1.4)]
    eps = dict(zip(schedule, (0.4, -0.2, 0.9), strict=False))
    past = [Point(level, 0.0, -level.sigma * eps[level]) for level in schedule[:2]]
    x, now, to = 1.7, schedule[2], schedule[3]
    s = Interval(2, 0, schedule, TABLE, past, lambda *_: 0.0, lambda x, level: x - level.sigma * eps[level])
    used = schedule[3 - order:3]
    sigma = np.linspace(now.sigma, to.sigma, 200_001)
    wanted = x
    for own in used:
        basis = np.prod([np.log(sigma / other.sigma) / math.log(own.sigma / other.sigma)
                         for other in used if other != own], axis=0)
        wanted += eps[own] * np.trapezoid(basis, sigma)
    solver = DPMMultistep(order, "noise", slope="heun", curvature="exact", settle=False)
    assert solver(x, s) == pytest.approx(wanted, rel=1e-9)


def test_first_order_is_ddim_either_way() -> None:
    """Without noise, constant x0 and constant epsilon draw the same line."""
    schedule = linspace(TABLE, 8, last="first")
    ends = [sample(solver, lambda x, level: math.tanh(x + level.sigma), 9.0, schedule, TABLE, noise=None)
            for solver in (Euler(), DPMMultistep(1), DPMMultistep(1, "noise"))]
    assert ends[1:] == pytest.approx(ends[:1] * 2, rel=1e-12)


# ---------------------------------------------------------------- steps and calls
def orders_used(solver: DPMMultistep, n: int, first: int = 0) -> list[int]:
    seen: list[int] = []
    sample(solver, lambda x, level: 0.5 * x, 1.0, karras(TABLE, n, last="first")[:-1], TABLE, noise=None, first=first,
           on_step=lambda x, s: seen.append(solver._order_at(s)) or x)
    return seen


def test_few_steps_settle_down() -> None:
    assert orders_used(DPMMultistep(3), 9) == [1, 2, 3, 3, 3, 3, 2, 1]
    assert orders_used(DPMMultistep(3), 16) == [1, 2] + [3] * 13
    assert orders_used(DPMMultistep(3, settle=False), 9) == [1, 2] + [3] * 6
    assert orders_used(DPMMultistep(2), 3) == [1, 1]


def test_entering_in_the_middle_begins_with_the_first_order() -> None:
    assert orders_used(DPMMultistep(3, settle=False), 9, first=4) == [1, 2, 3, 3]


@pytest.mark.parametrize(("n", "calls"), [(1, 1), (2, 3), (20, 21)])
def test_plms_looks_ahead_once(n: int, calls: int) -> None:
    asked: list[float] = []

    def denoise(x: float, level: Level) -> float:
        asked.append(level.t)
        return 0.5 * x

    schedule = leading(TABLE, n, last="first")
    sample(PLMS(), denoise, 1.0, schedule, TABLE, noise=None)
    assert len(asked) == calls == PLMS().calls(schedule)
    wanted = [level.t for level in schedule[:-1]]
    assert asked == (wanted if n == 1 else [wanted[0], wanted[1], *wanted[1:]])


def test_plms_on_a_straight_line_is_exact() -> None:
    """Where epsilon does not change, every rule of its family must agree with Euler."""
    schedule = leading(TABLE, 12, last="first")
    line = [sample(solver, lambda x, level: x - 0.7 * level.sigma, 3.0, schedule, TABLE, noise=None)
            for solver in (PLMS(), Euler())]
    assert line[0] == pytest.approx(line[1], rel=1e-12)
    assert line[0] == pytest.approx(3.0 + 0.7 * (schedule[-1].sigma - schedule[0].sigma), rel=1e-12)


@pytest.mark.parametrize("solver", [PLMS(), LMS(), DPMMultistep(3), DPMMultistep(3, "noise"),
                                    DPMMultistep(2, eta=1.0)])
@pytest.mark.parametrize("first", range(6))
def test_a_walk_may_begin_anywhere(solver: PLMS | LMS | DPMMultistep, first: int) -> None:
    """A network that always sees the same picture: whatever the start, the end is that picture."""
    end = sample(solver, lambda x, level: 0.25, 1.0, linspace(TABLE, 6), TABLE, noise=lambda *_: 0.3, first=first)
    assert end == pytest.approx(0.25, abs=1e-9)


# ---------------------------------------------------------------- the SDE
@pytest.mark.parametrize("solver", [DPMMultistep(2, eta=1.0), DPMMultistep(2, eta=0.5),
                                    DPMMultistep(2, "noise", eta=1.0), DPMMultistep(2, "noise", eta=0.5),
                                    DPMMultistep(3, eta=1.0, slope="heun", settle=False)])
def test_the_sde_keeps_the_distribution(solver: DPMMultistep) -> None:
    """Started from N(0, v + sigma^2) with the perfect denoiser of N(0, v), the samples end as N(0, v)."""
    variance = 0.49
    schedule = karras(TABLE, 60)
    noise = ImageNoise([5], (10_000,), dtype=torch.float64)
    start = noise.draw() * math.sqrt(variance + schedule[0].sigma ** 2)
    end = sample(solver, lambda x, level: x * variance / (variance + level.sigma ** 2), start, schedule, TABLE,
                 noise=noise)
    assert float(end.std()) == pytest.approx(math.sqrt(variance), rel=0.03)
