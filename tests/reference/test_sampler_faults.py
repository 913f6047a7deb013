"""Where diffusers' schedulers are wrong and ours follow the mathematics: each fault shown, and that we lack it.

A test that fails here may mean that the fault was mended: then compare that case in test_samplers.py as well.
"""
import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference.schedulers import (
    DDIM,
    DPM,
    EULER,
    LINSPACE,
    NO_CLIP,
    PNDM,
    SINGLESTEP,
    TABLE,
    TRAILING,
    UNIPC,
    scheduler_of,
    widen,
)
from torch import Tensor

from minisd.samplers.churn import Churn
from minisd.samplers.loop import Interval, Point, sample
from minisd.samplers.multistep import DPMMultistep
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import Spacing, karras, linspace, linspace_rounded, trailing
from minisd.samplers.singlestep import DPMSinglestep
from minisd.samplers.unipc import UniPC

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")


def gaussian(variance: float) -> Callable[[Tensor, float], Tensor]:
    """The perfect denoiser of data N(0, variance): x at sigma -> x0."""
    return lambda x, sigma: x * variance / (variance + sigma ** 2)


@pytest.mark.parametrize(("spacing", "config", "n"), [
    (functools.partial(linspace, rounded=True), LINSPACE, 20), (trailing, TRAILING, 7)])
def test_ddim_of_diffusers_lands_beside_its_next_timestep(spacing: Spacing, config: dict[str, object],
                                                          n: int) -> None:
    """It steps to t - 1000 // n, whichever timestep comes next; a step and its successor must be neighbours.

    The network here knows the picture, so that DDIM is exact at any step, as long as x is where t says it is.
    """
    picture, noise = (torch.tensor([value], dtype=torch.float64) for value in (0.7, -1.3))
    scheduler = scheduler_of(DDIM, **config, **NO_CLIP, set_alpha_to_one=False)
    scheduler.set_timesteps(n)
    schedule = spacing(TABLE, n, last="first")
    assert [level.t for level in schedule[:-1]] == scheduler.timesteps.tolist()

    x = (picture + schedule[0].sigma * noise) / schedule[0].scale
    astray = []
    for t, level in zip(scheduler.timesteps, schedule, strict=False):
        astray.append(float((x - (picture + level.sigma * noise) / level.scale).abs()))
        x = scheduler.step((x * level.scale - picture) / level.sigma, t, x).prev_sample
    assert max(astray) > 0.005, "the reference has been put right: compare DDIM on this spacing too"

    ours_astray = []

    def measure(x: Tensor, s: Interval) -> Tensor:
        ours_astray.append(float((x - picture - s.next.sigma * noise).abs()))
        return x

    sample(Euler(), lambda x, level: picture, picture + schedule[0].sigma * noise, schedule, TABLE,
           noise=no_noise, on_step=measure)
    assert max(ours_astray) < 1e-14


def no_noise(*_: object) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def test_trailing_of_diffusers_has_a_step_too_many() -> None:
    """For 61 steps (and 11 other counts up to 300) it walks 62, the last at timestep -1."""
    scheduler = scheduler_of(EULER, **TRAILING)
    scheduler.set_timesteps(61)
    assert len(scheduler.timesteps) == 62 and scheduler.timesteps[-1] == -1
    assert len(trailing(TABLE, 61)) == 62 and trailing(TABLE, 61)[-2].t == scheduler.timesteps[-2]


def test_one_linspace_step_of_diffusers_begins_at_the_clean_end() -> None:
    """One point of a linspace from 0 upwards is 0: it asks the network for pure noise at sigma 0.03."""
    scheduler = scheduler_of(EULER, **LINSPACE)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0.0]
    assert linspace(TABLE, 1)[0] == TABLE.at_t(999)


def test_karras_to_sigma_min_of_diffusers_has_a_step_without_length() -> None:
    """It asks the network once more to stay where it is; ours goes on to the picture."""
    scheduler = scheduler_of(DPM, use_karras_sigmas=True, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]
    assert karras(TABLE, 10, last="first")[-1].sigma == 0


def test_pndm_of_diffusers_loses_its_order_on_v(monkeypatch: pytest.MonkeyPatch) -> None:
    """It mixes the v of four levels and makes noise of the mixture with the present x alone: order 1.

    With Gaussian data the walk has a closed form: x scales by sqrt((variance + to^2) / (variance + from^2)).
    """
    widen(PNDM, monkeypatch)
    denoise = gaussian(0.49)

    def error(n: int, prediction: str) -> float:
        scheduler = scheduler_of(PNDM, prediction, **TRAILING, skip_prk_steps=True)
        scheduler.set_timesteps(n)
        x = torch.ones(1, dtype=torch.float64)
        for t in scheduler.timesteps:
            level = TABLE.at_t(int(t))
            x0 = denoise(x * level.scale, level.sigma)
            eps = (x * level.scale - x0) / level.sigma
            out = eps if prediction == "epsilon" else (eps - level.sigma * x0) / level.scale
            x = scheduler.step(out, t, x).prev_sample
        start, end = TABLE.at_t(999), TABLE.at_t(0)
        exact = math.sqrt((0.49 + end.sigma ** 2) / (0.49 + start.sigma ** 2)) * start.scale / end.scale
        return abs(float(x) / exact - 1)

    assert math.log2(error(50, "v") / error(100, "v")) < 1.1
    assert math.log2(error(50, "epsilon") / error(100, "epsilon")) > 1.6
    assert error(50, "v") > 7 * error(50, "epsilon")


def test_third_order_sde_of_diffusers_has_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weight of the second difference tends to -1 as the step shrinks, where k-diffusion's and ours tend to 0.

    The answers here are a parabola in lambda, whose integral over one step is known; the noise is zero.
    """
    widen(DPM, monkeypatch)

    def parabola(lam: float) -> float:
        return 0.3 + 0.7 * lam - 0.9 * lam ** 2

    n = 40
    scheduler = scheduler_of(DPM, solver_order=3, algorithm_type="sde-dpmsolver++", lower_order_final=False)
    scheduler.set_timesteps(n)
    schedule = linspace_rounded(TABLE, n)
    lams = [-math.log(level.sigma) for level in schedule[:-1]]
    x, zero, at = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1), 20
    for i, t in enumerate(scheduler.timesteps[:at + 1]):
        before, level, x0 = x, schedule[i], parabola(lams[i])
        out = (x * level.scale - x0) / level.sigma
        x = scheduler.step(out, t, x, variance_noise=zero).prev_sample
    before, after = float(before) * schedule[at].scale, float(x) * schedule[at + 1].scale

    lam = np.linspace(lams[at], lams[at + 1], 100_001)
    exact = (math.exp(-2 * (lams[at + 1] - lams[at])) * before
             + np.trapezoid(2 * np.exp(-2 * (lams[at + 1] - lam)) * parabola(lam), lam))
    past = [Point(level, 0.0, parabola(lam)) for level, lam in zip(schedule[:at], lams, strict=False)]
    s = Interval(at, 0, schedule, TABLE, past, lambda *_: 0.0, lambda x, level: parabola(lams[at]))
    published, whole = (abs(DPMMultistep(3, eta=1.0, curvature=c)(before, s) - exact) for c in ("published", "exact"))
    assert whole < 1e-10
    assert abs(after - exact) > 10 * published > 1e-6


def test_churn_of_diffusers_comes_after_the_network() -> None:
    """It adds noise to x when the network has already answered for x without it; Karras et al. ask afterwards.

    The network here knows the picture, so a step that asks about the x it goes on from keeps x on its line to it.
    """
    picture, x, noise = (torch.tensor([[value]], dtype=torch.float64) for value in (0.7, 9.0, 1.3))
    scheduler = scheduler_of(EULER, **LINSPACE)
    scheduler.set_timesteps(10)
    scheduler.is_scale_input_called = True
    now, later = (float(sigma) for sigma in scheduler.sigmas[3:5])
    raised = now * (1 + 2 / 10)
    stirred = x + 1.0 * math.sqrt(raised ** 2 - now ** 2) * noise
    exact = picture + later / raised * (stirred - picture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_euler_discrete.randn_tensor", lambda *_, **__: noise)
        got = scheduler.step((x - picture) / now, scheduler.timesteps[3], x, s_churn=2.0).prev_sample
    assert float((got - exact).abs()) > 0.1, "the reference has been put right: compare churn in test_samplers too"

    schedule = linspace(TABLE, 10)
    s = Interval(3, 0, schedule, TABLE, [Point(schedule[0], x, x)] * 3, lambda *_: noise, lambda x, level: picture)
    assert float((Euler(churn=Churn(2.0))(x, s) - exact).abs()) < 1e-5


def test_unipc_bh1_of_diffusers_ends_in_nan() -> None:
    """Its B(h) = h is infinite on the way to sigma 0, and is multiplied by no differences at all: infinity by zero."""
    scheduler = scheduler_of(UNIPC, solver_type="bh1")
    scheduler.set_timesteps(4)
    x = torch.ones(1, 1, dtype=torch.float64)
    for t in scheduler.timesteps:
        assert x.isfinite()
        x = scheduler.step(0.5 * x, t, x).prev_sample
    assert x.isnan()
    end = sample(UniPC(2, "bh1"), lambda x, level: 0.5 * x, torch.ones(1), linspace_rounded(TABLE, 4), TABLE,
                 noise=no_noise)
    assert end.isfinite()


def test_third_order_singlestep_sde_of_diffusers_has_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slip as in the multistep solver: where the answers are a parabola in lambda, and noise is zero."""
    widen(SINGLESTEP, monkeypatch)

    def parabola(lam: float) -> float:
        return 0.3 + 0.7 * lam - 0.9 * lam ** 2

    n = 40
    scheduler = scheduler_of(SINGLESTEP, solver_order=3, algorithm_type="sde-dpmsolver++", solver_type="heun",
                             lower_order_final=True)
    scheduler.set_timesteps(n)
    monkeypatch.setattr("diffusers.schedulers.scheduling_dpmsolver_singlestep.randn_tensor",
                        lambda *_, **__: torch.zeros(1, 1))
    schedule = linspace_rounded(TABLE, n)
    x = torch.ones(1, 1, dtype=torch.float64)
    states = [x]
    for t, level in zip(scheduler.timesteps[:21], schedule, strict=False):
        out = (x * level.scale - parabola(-math.log(level.sigma))) / level.sigma
        x = scheduler.step(out, t, x).prev_sample
        states.append(x)
    start, to = schedule[18], schedule[21]                       # a whole group of three
    lam = np.linspace(-math.log(start.sigma), -math.log(to.sigma), 100_001)
    before = float(states[18]) * start.scale
    exact = (math.exp(-2 * (lam[-1] - lam[0])) * before
             + np.trapezoid(2 * np.exp(-2 * (lam[-1] - lam)) * parabola(lam), lam))
    past = [Point(level, before, parabola(-math.log(level.sigma))) for level in schedule[:20]]
    s = Interval(20, 0, schedule, TABLE, past, lambda *_: 0.0, lambda x, level: parabola(-math.log(level.sigma)))
    assert abs(DPMSinglestep(3, eta=1.0, slope="heun")(before, s) - exact) < 1e-9
    assert abs(float(states[21]) * to.scale - exact) > 1e-3
