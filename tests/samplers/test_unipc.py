import math
from collections.abc import Callable

import pytest

from minisd.samplers.loop import Interval, Point, sample
from minisd.samplers.schedule import Level, NoiseTable, karras, linspace
from minisd.samplers.unipc import UniPC

TABLE = NoiseTable()
EVERY = [UniPC(order, weight, answer) for order in (1, 2, 3) for weight in ("bh1", "bh2")
         for answer in ("data", "noise")]


@pytest.mark.parametrize("solver", [solver for solver in EVERY if solver.order < 3], ids=str)
def test_correcting_gains_an_order(solver: UniPC, measured_order: Callable[..., float]) -> None:
    """Theorem 3.1: order p + 1.  The last steps are of falling order, so it is measured before them."""
    assert measured_order(solver, left_out=8) == pytest.approx(solver.order + 1, abs=0.1)


@pytest.mark.parametrize("solver", [solver for solver in EVERY if solver.order == 3], ids=str)
def test_order_3_gains_one_too(solver: UniPC, gaussian_error: Callable[..., float]) -> None:
    """On this problem its error changes sign on the way, so no power can be read off: it must only beat order 2."""
    lower = UniPC(2, solver.weight, solver.extrapolate)
    for n in (40, 80, 160):
        assert gaussian_error(solver, n, 3, n // 10) < 0.5 * gaussian_error(lower, n, 3, n // 10)


@pytest.mark.parametrize("answer", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_integrates_a_polynomial_exactly(answer: str, order: int) -> None:
    """`order` answers of the past and the one at the end determine a polynomial in lambda of degree `order`."""
    levels = [Level(sigma, 0.0) for sigma in (5.0, 3.1, 2.2, 1.4)]

    def value(lam: float) -> float:
        return sum(c * lam ** k for k, c in enumerate((0.3, 0.7, -0.9, 0.2)[:order + 1]))

    def point(level: Level) -> Point:
        a = value(-math.log(level.sigma))
        return Point(level, 1.7, a if answer == "data" else 1.7 - level.sigma * a)

    past = [point(level) for level in levels[:3]][-order:]
    got = UniPC(order, extrapolate=answer)._moved(past, levels[3], point(levels[3]))
    assert got == pytest.approx(integral(answer, value, levels[2], levels[3]), rel=1e-9)


def integral(answer: str, value: Callable[[float], float], now: Level, to: Level) -> float:
    """The exact step from x = 1.7, by Simpson's rule."""
    n = 2000
    a, b = -math.log(now.sigma), -math.log(to.sigma)
    lams = [a + (b - a) * i / n for i in range(n + 1)]
    weigh = (lambda lam: math.exp(lam - b)) if answer == "data" else (lambda lam: -math.exp(-lam))
    simpson = [1, *([4, 2] * (n // 2 - 1)), 4, 1]
    area = sum(w * weigh(lam) * value(lam) for w, lam in zip(simpson, lams, strict=True)) * (b - a) / n / 3
    return (to.sigma / now.sigma * 1.7 if answer == "data" else 1.7) + area


@pytest.mark.parametrize("answer", ["data", "noise"])
def test_the_two_weights_differ_only_in_a_single_difference(answer: str) -> None:
    """B cancels where the weights are solved for: algorithm 5 and 6."""
    points = [Point(Level(sigma, 0.0), 1.7, math.tanh(sigma)) for sigma in (5.0, 3.1, 2.2)]
    to = Level(1.4, 0.0)
    first, second = UniPC(3, "bh1", answer), UniPC(3, "bh2", answer)
    assert first._moved(points, to) == pytest.approx(second._moved(points, to), rel=1e-14)
    h = math.log(2.2 / 1.4)
    gaps = [solver._moved(points[1:], to) - solver._moved(points[2:], to) for solver in (first, second)]
    assert gaps[0] / gaps[1] == pytest.approx(h / (-math.expm1(-h) if answer == "data" else math.expm1(h)))


@pytest.mark.parametrize("answer", ["data", "noise"])
def test_the_corrected_point_keeps_its_answer(answer: str) -> None:
    said: list[float] = []
    kept: list[Point] = []

    def denoise(x: float, level: Level) -> float:
        x0 = math.tanh(x)
        said.append(x0 if answer == "data" else (x - x0) / level.sigma)
        return x0

    def on_step(x: float, s: Interval) -> float:
        kept[:] = s.past
        return x

    sample(UniPC(2, extrapolate=answer), denoise, 9.0, karras(TABLE, 6), TABLE, noise=None, on_step=on_step)
    assert [point.x0 if answer == "data" else point.eps for point in kept] == pytest.approx(said, rel=1e-12)


def test_orders_rise_and_fall() -> None:
    orders: list[int] = []
    solver = UniPC(3)
    sample(solver, lambda x, level: 0.5 * x, 1.0, karras(TABLE, 9), TABLE, noise=None, first=2,
           on_step=lambda x, s: orders.append(solver._order_at(s, s.index)) or x)
    assert orders == [1, 2, 3, 3, 3, 2, 1]


@pytest.mark.parametrize("solver", EVERY, ids=str)
@pytest.mark.parametrize("first", range(6))
def test_a_walk_may_begin_anywhere(solver: UniPC, first: int) -> None:
    asked: list[Level] = []
    schedule = linspace(TABLE, 6)
    end = sample(solver, lambda x, level: asked.append(level) or 0.25, 0.25 + 0.7 * schedule[first].sigma, schedule,
                 TABLE, noise=None, first=first)
    assert end == pytest.approx(0.25, abs=1e-9) and asked == schedule[first:-1]
    assert len(asked) == solver.calls(schedule[first:])


def test_from_a_table_without_signal_it_stays_finite() -> None:
    table = NoiseTable(zero_snr=True)
    schedule = linspace(table, 10)
    end = sample(UniPC(3), lambda x, level: 0.25, schedule[0].scale, schedule, table, noise=None)
    assert end == pytest.approx(0.25, abs=1e-6)
