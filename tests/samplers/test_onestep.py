import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from minisd.samplers.loop import sample, split
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import CLEAN, NoiseTable, leading, linspace

TABLE = NoiseTable()


def test_euler_is_of_first_order(measured_order: Callable[..., float]) -> None:
    assert measured_order(Euler()) == pytest.approx(1, abs=0.05)


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


def test_ancestral_steps_keep_the_distribution() -> None:
    """Started from N(0, v + sigma^2) with the perfect denoiser of N(0, v), x ends as N(0, v), as steps grow many.

    The step is linear in x and in its noise, so the variance can be followed exactly.
    """
    def deviation(n: int, v: float = 0.49) -> float:
        schedule = linspace(TABLE, n)
        variance = v + schedule[0].sigma ** 2
        for pair in pairwise(schedule):
            of_x, of_noise = (sample(Euler(eta=1.0), lambda x, level: x * v / (v + level.sigma ** 2), x, pair, TABLE,
                                     noise=lambda *_, z=noise: z) for x, noise in ((1.0, 0.0), (0.0, 1.0)))
            variance = of_x ** 2 * variance + of_noise ** 2
        return math.sqrt(variance / v) - 1

    assert abs(deviation(1000)) < 0.01
    assert deviation(250) / deviation(1000) == pytest.approx(3.2, abs=0.2)


def test_calls() -> None:
    assert Euler().calls(leading(TABLE, 20)) == 20
