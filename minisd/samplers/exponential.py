"""What DPM-Solver, DEIS and UniPC share: one step of the ODE or SDE with the network's answer a polynomial in lambda.

In lambda = -log(sigma) the linear part of the equation is solved exactly, and what is left is an integral of the
network's answer: of its epsilon (DPM-Solver, arXiv 2206.00927) or of its x0 (DPM-Solver++, arXiv 2211.01095).
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from minisd.samplers.loop import Point
from minisd.samplers.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

Answer = Literal["data", "noise"]


class Step(NamedTuple):
    """x at the end is keep * x + gain * (phi1 * a + phi2 * a' + phi3 * a'') + up * noise.

    a, a', a'' are the answer and its derivatives at the start, per step of lambda: the phis are the integrals of 1,
    u and u^2 / 2 over the step.
    """
    keep: float
    gain: float
    phi1: float
    phi2: float
    phi3: float
    up: float


def step(answer: Answer, eta: float, now: Level, to: Level) -> Step:
    """The step from a level to another, neither at sigma 0; eta is 0 for the ODE and 1 for the reverse SDE."""
    h = lam(to) - lam(now)
    if answer == "data":                                         # DPM-Solver++, eq. 8
        z = (1 + eta) * h
        phi1 = -math.expm1(-z)
        phi2 = 1 - phi1 / z
        return Step(math.exp(-z), 1.0, phi1, phi2, 0.5 - phi2 / z, to.sigma * math.sqrt(-math.expm1(-2 * eta * h)))
    phi1 = math.expm1(h)                                         # DPM-Solver, eq. 3.7
    phi2 = phi1 / h - 1
    return Step(1.0, -(1 + eta) * to.sigma, phi1, phi2, phi2 / h - 0.5, to.sigma * math.sqrt(eta * math.expm1(2 * h)))


def lam(level: Level) -> float:
    """Half the log signal-to-noise ratio: the time DPM-Solver thinks in."""
    return -math.log(level.sigma)


def answer_of(point: Point, answer: Answer) -> Tensor:
    """What the network said there."""
    return point.x0 if answer == "data" else point.eps
