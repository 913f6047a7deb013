import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from minisd.samplers.loop import Solver, sample, split
from minisd.samplers.onestep import DPM2, DPMpp2S, DPMppSDE, Euler, Heun
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, exponential, karras, leading, linspace

TABLE = NoiseTable()
ORDERS = {"euler": (Euler(), 1), "heun": (Heun(), 2), "dpm2": (DPM2(), 2), "dpm++2s": (DPMpp2S(eta=0.0), 2),
          "dpm++ sde without noise": (DPMppSDE(eta=0.0), 2), "the same at a third": (DPMppSDE(eta=0.0, r=1 / 3), 2)}
TWICE = [Heun(), DPM2(), DPM2(eta=1.0), DPMpp2S(), DPMppSDE()]


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str, measured_order: Callable[..., float]) -> None:
    solver, order = ORDERS[name]
    assert measured_order(solver) == pytest.approx(order, abs=0.05)


def test_without_noise_it_is_ddim() -> None:
    """DDIM's eq. 12 in its own variance-preserving x, with an arbitrary answer of the network."""
    now, later = TABLE.at_t(601), TABLE.at_t(401)
    alpha, alpha_next = 1 / now.scale, 1 / later.scale
    x, x0 = 0.8, -0.3
    eps = (x - alpha * x0) / math.sqrt(1 - alpha ** 2)
    wanted = alpha_next * x0 + math.sqrt(1 - alpha_next ** 2) * eps
    got = sample(Euler(), lambda x, level: x0, x * now.scale, [now, later], TABLE, noise=None)
    assert got / later.scale == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1.7])
@pytest.mark.parametrize(("t", "to"), [(500, 499), (701, 601)])
def test_with_eta_1_it_is_ddpm(t: int, to: int, noise: float) -> None:
    """DDPM's posterior, eq. 7: mean and variance at t - 1 given x0, for neighbours and for steps of a hundred."""
    now, later = TABLE.at_t(t), TABLE.at_t(to)
    a, b = TABLE.alphas_cumprod[t], TABLE.alphas_cumprod[to]
    beta = 1 - a / b
    x, x0 = 0.8, -0.3
    mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
    deviation = math.sqrt(beta * (1 - b) / (1 - a))
    got = sample(Euler(eta=1.0), lambda x, level: x0, x * now.scale, [now, later], TABLE, noise=lambda *_: noise)
    assert got / later.scale == pytest.approx(mean + deviation * noise, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_down_and_up_land_on_the_level(eta: float) -> None:
    for a, b in ((14.6, 9.0), (1.0, 0.97), (0.1, 0.03)):
        down, up = split(a, b, eta)
        assert down ** 2 + up ** 2 == pytest.approx(b ** 2)
        assert (up == 0) == (eta == 0)
    assert split(0.03, 0.0, eta) == (0.0, 0.0)


def test_the_last_step_adds_no_noise() -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("noise asked for on the way to sigma 0")

    assert sample(Euler(eta=1.0), lambda x, level: 0.25, 1.0, [TABLE.at_t(1), CLEAN], TABLE, noise=refuse) == 0.25


def variance_error(solver: Solver, n: int, v: float = 0.49) -> float:
    """Relative error of the variance of samples that begin as N(0, v + sigma^2) under the perfect denoiser of N(0, v).

    With independent noise.  A step is linear in x and in every noise it draws, so the variance is followed exactly.
    """
    schedule = exponential(TABLE, n + 1)[:-1]
    variance = v + schedule[0].sigma ** 2
    for pair in pairwise(schedule):
        variance = sum(_gain(solver, pair, v, source) ** 2 * (variance if source == 0 else 1) for source in range(3))
    return variance / (v + schedule[-1].sigma ** 2) - 1


def _gain(solver: Solver, pair: tuple[Level, Level], v: float, source: int) -> float:
    """How much of a source is in the end of one step: 0 is x, 1 and 2 are the first and second noise it draws."""
    drawn = iter([float(source == 1), float(source == 2)])
    return sample(solver, lambda x, level: x * v / (v + level.sigma ** 2), float(source == 0), pair, TABLE,
                  noise=lambda *_: next(drawn))


@pytest.mark.parametrize("solver", [Euler(eta=1.0), Euler(eta=0.5), DPM2(eta=1.0), DPM2(eta=0.5), DPMpp2S(),
                                    DPMpp2S(eta=0.5), DPMppSDE()])
def test_ancestral_steps_keep_the_distribution(solver: Solver) -> None:
    """Ever better as steps grow many."""
    coarse, fine = variance_error(solver, 100), variance_error(solver, 400)
    assert abs(fine) < 0.016 and coarse / fine > 3.5


@pytest.mark.parametrize("solver", TWICE)
@pytest.mark.parametrize(("last", "calls"), [("clean", 19), ("first", 20)])
def test_two_calls_a_step_but_one_to_sigma_0(solver: Solver, last: str, calls: int) -> None:
    schedule, asked = karras(TABLE, 11)[:-1] if last == "first" else karras(TABLE, 10), []
    sample(solver, lambda x, level: asked.append(level) or 0.5 * x, 1.0, schedule, TABLE, noise=lambda *_: 0.0)
    assert len(asked) == calls == solver.calls(schedule)
    assert all(level.sigma > 0 for level in asked)
    assert solver.calls(schedule[-1:]) == 0


def test_heun_is_the_mean_of_both_slopes() -> None:
    now, later = TABLE.at_t(700), TABLE.at_t(500)
    x, dx = 9.0, later.sigma - now.sigma
    slopes = {now: 0.8, later: 0.5}
    got = sample(Heun(), lambda x, level: x - level.sigma * slopes[level], x, [now, later], TABLE, noise=None)
    assert got == pytest.approx(x + dx * 0.65, rel=1e-12)


@pytest.mark.parametrize("solver", [DPM2(), DPMpp2S(eta=0.0), DPMppSDE(eta=0.0)])
def test_the_middle_is_even_in_log_sigma(solver: Solver) -> None:
    asked: list[Level] = []
    sample(solver, lambda x, level: asked.append(level) or 0.5 * x, 1.0, [TABLE.at_t(700), TABLE.at_t(500)], TABLE,
           noise=None)
    assert asked[1].sigma == pytest.approx(math.sqrt(TABLE.at_t(700).sigma * TABLE.at_t(500).sigma), rel=1e-12)
    assert asked[1] == pytest.approx(TABLE.at_sigma(asked[1].sigma), rel=1e-12)


def test_dpmpp_sde_asks_for_noise_of_its_own_intervals() -> None:
    """To the middle and to the end, both from `now`: what Brownian motion needs to know."""
    now, later = TABLE.at_t(700), TABLE.at_t(500)
    asked: list[tuple[Level, Level]] = []
    sample(DPMppSDE(), lambda x, level: 0.5 * x, 1.0, [now, later], TABLE,
           noise=lambda *pair: asked.append(pair) or 0.0)
    middle = TABLE.at_sigma(math.sqrt(now.sigma * later.sigma))
    assert [level for level, _ in asked] == [now, now]
    assert asked[0][1].sigma == pytest.approx(middle.sigma) and asked[1][1] == later


@pytest.mark.parametrize("solver", [*TWICE, Euler()])
@pytest.mark.parametrize("first", range(6))
def test_a_walk_may_begin_anywhere(solver: Solver, first: int) -> None:
    """A network that always sees the same picture: whatever the start, the end is that picture."""
    end = sample(solver, lambda x, level: 0.25, 1.0, linspace(TABLE, 6), TABLE, noise=lambda *_: 0.3, first=first)
    assert end == pytest.approx(0.25, abs=1e-9)


def test_calls() -> None:
    assert Euler().calls(leading(TABLE, 20)) == 20
