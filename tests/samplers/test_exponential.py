import math

import numpy as np
import pytest

from minisd.samplers.exponential import answer_of, lam, step
from minisd.samplers.loop import Point
from minisd.samplers.schedule import Level

NOW, TO = Level(3.1, 0.0), Level(1.7, 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("answer", ["data", "noise"])
def test_a_step_is_the_integral_of_the_equation(answer: str, eta: float) -> None:
    """Against numerical integration, for answers 1, u and u^2 / 2, where u goes from 0 to 1 over the step."""
    keep, gain, *phis, _ = step(answer, eta, NOW, TO)
    lams = np.linspace(lam(NOW), lam(TO), 200_001)
    u = (lams - lams[0]) / (lams[-1] - lams[0])
    power = 1 + eta
    for phi, value in zip(phis, (np.ones_like(u), u, u ** 2 / 2), strict=True):
        if answer == "data":            # dx = power (x - x0) d log sigma
            wanted = np.trapezoid(power * np.exp(power * (lams - lams[-1])) * value, lams)
        else:                           # dx = power eps dsigma
            wanted = -np.trapezoid(power * np.exp(-lams) * value, lams)
        assert gain * phi == pytest.approx(wanted, rel=1e-8)
    assert keep == pytest.approx((TO.sigma / NOW.sigma) ** power if answer == "data" else 1.0)


@pytest.mark.parametrize("answer", ["data", "noise"])
def test_fresh_noise_of_the_sde(answer: str) -> None:
    """With a picture that is known, the variance of x is sigma^2 at the end if it was so at the beginning."""
    keep, _, _, _, _, up = step(answer, 1.0, NOW, TO)
    assert step(answer, 0.0, NOW, TO).up == 0
    if answer == "data":
        assert (keep * NOW.sigma) ** 2 + up ** 2 == pytest.approx(TO.sigma ** 2)
    else:                               # epsilon is x's own noise here: what is kept of it is 2 to - now
        assert up ** 2 == pytest.approx(NOW.sigma ** 2 - TO.sigma ** 2)


@pytest.mark.parametrize("answer", ["data", "noise"])
@pytest.mark.parametrize("h", [1e-4, 1e-2, 8.0])
def test_steps_short_and_long_keep_their_digits(answer: str, h: float) -> None:
    """The phis are 1 / k! of the step to first order; from the noisiest level of a zero-SNR table they stay finite."""
    _, _, phi1, phi2, phi3, _ = step(answer, 0.0, Level(4096.0, 999.0), Level(4096.0 * math.exp(-h), 0.0))
    assert all(map(math.isfinite, (phi1, phi2, phi3)))
    if h < 0.1:
        assert [phi1 / h, phi2 / h, phi3 / h] == pytest.approx([1, 1 / 2, 1 / 6], rel=h)


def test_answers() -> None:
    point = Point(Level(2.0, 500.0), 5.0, 1.0)
    assert answer_of(point, "data") == 1.0 and answer_of(point, "noise") == 2.0
