import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from minisd.samplers.loop import Point, Solver, sample, toward
from minisd.samplers.noise import BrownianNoise, ImageNoise
from minisd.samplers.onestep import DPMpp2S, DPMppSDE
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, exponential, linspace
from minisd.samplers.singlestep import DPMSinglestep, extended, thirds

TABLE = NoiseTable()
EVERY = [DPMSinglestep(order, answer, 0.0, slope) for order in (1, 2, 3) for answer in ("data", "noise")
         for slope in ("published", "midpoint", "heun")]


# ---------------------------------------------------------------- order
@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_order_of_convergence(solver: DPMSinglestep, measured_order: Callable[..., float]) -> None:
    """At the end of a whole group: 320 = 2 and 640 - 4 = 0 (mod 3) leave two and four intervals of lower order."""
    left_out = 2 if solver.order == 3 else 0
    assert measured_order(solver, left_out=left_out) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize(("answer", "order"), list(itertools.product(["data", "noise"], [1, 2, 3])))
def test_a_polynomial_of_one_degree_less_is_integrated_exactly(answer: str, order: int) -> None:
    levels, to = [Level(sigma, 0.0) for sigma in (5.0, 3.1, 2.2)][:order], Level(1.4, 0.0)

    def value(lam: float) -> float:
        return sum(c * lam ** k for k, c in enumerate((0.3, 0.7, -0.9)[:order]))

    def point(level: Level) -> Point:
        a = value(-math.log(level.sigma))
        return Point(level, 1.7, a if answer == "data" else 1.7 - level.sigma * a)

    lam = np.linspace(-math.log(5.0), -math.log(to.sigma), 200_001)
    if answer == "data":
        wanted = to.sigma / 5.0 * 1.7 + np.trapezoid(np.exp(lam - lam[-1]) * value(lam), lam)
    else:
        wanted = 1.7 - np.trapezoid(np.exp(-lam) * value(lam), lam)
    assert extended([point(level) for level in levels], to, answer, "heun")[0] == pytest.approx(wanted, rel=1e-9)


def test_dpm_solver_3_to_the_letter() -> None:
    """Algorithm 2 of arXiv 2206.00927 with r1 = 1/3, r2 = 2/3, on one group of levels even in lambda."""
    h, sigmas = 0.9, [4.0 * math.exp(-0.3 * i) for i in range(4)]
    schedule = [Level(sigma, 0.0) for sigma in sigmas]

    def eps(x: float, sigma: float) -> float:
        return math.tanh(0.3 * x) + 0.1 * sigma

    x = 3.0
    e0 = eps(x, sigmas[0])
    u1 = x - sigmas[1] * math.expm1(h / 3) * e0
    d1 = eps(u1, sigmas[1]) - e0
    u2 = (x - sigmas[2] * math.expm1(2 * h / 3) * e0
          - sigmas[2] * 2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1)
    d2 = eps(u2, sigmas[2]) - e0
    wanted = x - sigmas[3] * math.expm1(h) * e0 - sigmas[3] * 1.5 * (math.expm1(h) / h - 1) * d2

    solver = DPMSinglestep(3, "noise")
    got: list[float] = []
    # A fourth interval follows, so that these three are a whole group.
    sample(solver, lambda x, level: x - level.sigma * eps(x, level.sigma), x, [*schedule, Level(1.0, 0.0)], TABLE,
           noise=None, on_step=lambda x, s: got.append(x) or x)
    assert got[2] == pytest.approx(wanted, rel=1e-12)


def test_of_order_2_on_even_levels_it_is_dpmpp_2s() -> None:
    """Two intervals of one are one interval of the other, whose middle lies between."""
    fine = exponential(TABLE, 9)[:-1]
    ends = [sample(solver, lambda x, level: math.tanh(x + level.sigma), 9.0, schedule, TABLE, noise=None)
            for solver, schedule in ((DPMSinglestep(2), fine), (DPMpp2S(eta=0.0), fine[::2]))]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)


# ---------------------------------------------------------------- groups
@pytest.mark.parametrize(("order", "n", "groups"), [
    (3, 1, "1"), (3, 2, "12"), (3, 3, "121"), (3, 4, "1231"), (3, 5, "12312"), (3, 6, "123121"), (3, 7, "1231231"),
    (2, 1, "1"), (2, 2, "12"), (2, 3, "121"), (2, 6, "121212"), (1, 4, "1111")])
def test_groups(order: int, n: int, groups: str) -> None:
    solver = DPMSinglestep(order)
    assert "".join(str(solver.group(i, n)[0]) for i in range(n)) == groups
    for i in range(n):
        place, size = solver.group(i, n)
        assert 1 <= place <= size <= order


@pytest.mark.parametrize("solver", EVERY, ids=str)
@pytest.mark.parametrize("first", range(7))
def test_a_walk_may_begin_anywhere(solver: DPMSinglestep, first: int) -> None:
    """Groups are counted from where it begins.  A network that always sees the same picture ends with it."""
    schedule = linspace(TABLE, 7, last="clean" if solver.extrapolate == "data" else "first")
    x = 0.25 + 0.7 * schedule[first].sigma
    asked: list[Level] = []
    end = sample(solver, lambda x, level: asked.append(level) or 0.25, x, schedule, TABLE, noise=None, first=first)
    assert end == pytest.approx(0.25 + 0.7 * schedule[-1].sigma, abs=1e-9)
    assert asked == schedule[first:-1] and len(asked) == solver.calls(schedule[first:])


def test_a_group_begins_where_its_first_interval_began() -> None:
    """Whatever becomes of x within the group, only the network's answers there count."""
    now, middle, later = (TABLE.at_t(t) for t in (700, 600, 500))
    ends = [sample(DPMSinglestep(2), lambda x, level: 0.5, 3.0, [now, middle, later], TABLE, noise=None,
                   on_step=lambda x, s, by=by: x + by if s.index == 0 else x) for by in (0.0, 5.0)]
    assert ends[0] == ends[1] == pytest.approx(toward(3.0, 0.5, now.sigma, later.sigma))


# ---------------------------------------------------------------- the SDE
@pytest.mark.parametrize("solver", [DPMSinglestep(2, eta=1.0), DPMSinglestep(3, eta=1.0), DPMppSDE()], ids=str)
def test_the_sde_keeps_the_distribution_on_one_path(solver: Solver) -> None:
    """Noise of intervals that overlap must be of one path: with independent noise the pictures lose contrast."""
    variance, schedule = 0.49, exponential(TABLE, 121)[:-1]

    def deviation(noise: ImageNoise) -> float:
        """Of samples that should end as N(0, variance + sigma^2), relative."""
        start = noise.draw() * math.sqrt(variance + schedule[0].sigma ** 2)
        end = sample(solver, lambda x, level: x * variance / (variance + level.sigma ** 2), start, schedule, TABLE,
                     noise=noise)
        return float(end.std()) / math.sqrt(variance + schedule[-1].sigma ** 2) - 1

    fresh, path = (deviation(kind([5], (10_000,), dtype=torch.float64)) for kind in (ImageNoise, BrownianNoise))
    assert abs(path) < 0.015 and fresh < min(-0.015, 2 * path)


def test_noise_is_asked_for_from_the_first_level_of_the_group() -> None:
    schedule, asked = [TABLE.at_t(t) for t in (900, 700, 500, 300, 100)], []
    sample(DPMSinglestep(3, eta=1.0), lambda x, level: 0.5, 3.0, schedule, TABLE,
           noise=lambda *pair: asked.append(pair) or 0.0)
    assert asked == [(schedule[0], schedule[1]), (schedule[0], schedule[2]), (schedule[0], schedule[3]),
                     (schedule[3], schedule[4])]


# ---------------------------------------------------------------- the spacing
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 20, 21, 22, 1000])
def test_thirds_are_even_within_groups_of_one_length(n: int) -> None:
    schedule = thirds(TABLE, n, last="first")
    assert len(schedule) == n + 1 and schedule[-1] == TABLE.at_t(0)
    assert schedule[0].sigma == pytest.approx(TABLE.sigmas[-1])
    lams = -np.log([level.sigma for level in schedule])
    starts = [i for i in range(n) if DPMSinglestep(3).group(i, n)[0] == 1]
    lengths = np.diff([*lams[starts], lams[-1]])
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        steps = np.diff(lams[start:end + 1])
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_thirds_to_sigma_0_and_impossible_counts() -> None:
    assert thirds(TABLE, 7)[:-1] == thirds(TABLE, 7, last="first")[:-1] and thirds(TABLE, 7)[-1] == CLEAN
    for n in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            thirds(TABLE, n)
