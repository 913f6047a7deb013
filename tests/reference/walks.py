"""A walk from noise to picture by a scheduler of diffusers and by ours, on a toy network, each fed its own outputs."""
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from comparison import assert_close
from reference.sampler_cases import Case
from reference.schedulers import (
    ANCESTRAL,
    EULER,
    HEUN,
    KDPM2,
    KDPM2_ANCESTRAL,
    LMS,
    PNDM,
    SDE,
    TABLE,
    module_of,
    scheduler_of,
    widen,
)
from torch import Tensor
from toy import noise_list, toy_unet

from minisd.samplers.denoiser import Conditioning, conditioned, denoiser
from minisd.samplers.loop import sample
from minisd.samplers.schedule import Schedule

SHAPE = (2, 4, 6, 6)
FLOAT64, FLOAT32 = 1e-9, 1e-5                       # the bars, relative; of the first, 5e-6 is asked
# In float32 the reference finds a sigma's timestep to within 0.002, and one next to 0 as 0.0096.
LOOSE = 1e-2
IN_SIGMA_SPACE = (EULER, ANCESTRAL, HEUN, LMS, KDPM2, KDPM2_ANCESTRAL, SDE)

@dataclass(frozen=True)
class Walk:
    """What the network was given at every call, in the variance-preserving scale, what it was told, and the end."""
    fed: list[Tensor]
    told: list[float]
    end: Tensor


class Worst(NamedTuple):
    """The largest relative difference of a walk, of the largest value of what is compared."""
    float64: float                     # both in float64, the reference with its word `float32` read as float64
    float32: float                     # ours in float32, the reference in float64
    as_it_is: float = math.nan         # ours in float64, the reference with its tables and some steps in float32


def compared(case: Case, prediction: str, n: int, as_it_is: bool = False) -> Worst:
    """One walk of n steps, compared at every input to the network and at the end; within the bars, or it fails."""
    exact = theirs(case, prediction, n, wide=True)
    name = f"{case.method}, {prediction}, {n} steps"
    worst = Worst(
        difference_of(f"{name}, float64", case, ours(case, prediction, n, exact), exact, FLOAT64),
        difference_of(f"{name}, float32", case, ours(case, prediction, n, exact, torch.float32), exact, FLOAT32))
    if not as_it_is:
        return worst
    narrow = theirs(case, prediction, n, wide=False)    # whose whole timesteps may be others: 998 for 999
    return worst._replace(as_it_is=difference_of(
        f"{name}, as it is", case, ours(case, prediction, n, narrow, slack=LOOSE), narrow, math.inf))


def difference_of(name: str, case: Case, mine: Walk, reference: Walk, within: float) -> float:
    close = pytest.approx(reference.told, rel=1e-7, abs=1e-7 if within < math.inf else LOOSE)
    assert mine.told == close, f"{name}: timesteps told to the network"
    differences = [assert_close(f"{name}: call {i + 1} of {len(mine.fed)}", a, b, within)
                   for i, (a, b) in enumerate(zip(mine.fed, reference.fed, strict=True))]
    if not case.dummy:
        differences.append(assert_close(f"{name}: the end", mine.end, reference.end, within))
    return max(differences)


def theirs(case: Case, prediction: str, n: int, wide: bool) -> Walk:
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        if not wide:
            return _theirs(case, prediction, n, patch)
        widen(case.reference, patch)
        torch.set_default_dtype(torch.float64)         # LCM's coefficients are quotients of whole numbers
        try:
            return _theirs(case, prediction, n, patch)
        finally:
            torch.set_default_dtype(before)


def _theirs(case: Case, prediction: str, n: int, patch: pytest.MonkeyPatch) -> Walk:
    first, *rest = noise_list(2 * n + 2, SHAPE)
    fresh, unet = iter(rest), toy_unet()
    patch.setattr(module_of(case.reference), "randn_tensor",
                  lambda shape, generator, device, dtype: next(fresh).to(dtype), raising=False)
    if case.reference == PNDM and prediction == "v":
        unet, prediction = epsilon_of_v(unet), "epsilon"
    scheduler = scheduler_of(case.reference, prediction=prediction, **case.config)
    scheduler.set_timesteps(n)
    scheduler.noise_sampler = lambda *_: next(fresh)        # DPMSolverSDE's own way to noise
    scale = math.sqrt(1 + float(scheduler.sigmas[0]) ** 2) if case.reference in IN_SIGMA_SPACE else 1.0
    x = first * scale
    fed: list[Tensor] = []
    for t in scheduler.timesteps:
        fed.append(scheduler.scale_model_input(x, t))
        x = scheduler.step(unet(fed[-1], t.expand(len(x))), t, x, **case.step).prev_sample
    last = math.sqrt(1 + float(scheduler.sigmas[-1]) ** 2) if case.reference in IN_SIGMA_SPACE else 1.0
    return Walk(fed, [float(t) for t in scheduler.timesteps], x / last)


def ours(case: Case, prediction: str, n: int, reference: Walk, dtype: torch.dtype = torch.float64,
         slack: float = 1e-6) -> Walk:
    schedule, unet = case.spacing(TABLE, n, last=case.last), toy_unet()
    if case.told_whole:
        schedule = told_as(schedule, reference.told, slack)
    first, *rest = (noise.to(dtype) for noise in noise_list(2 * n + 2, SHAPE))
    fresh = iter(rest)
    fed: list[Tensor] = []
    told: list[float] = []

    def listening(x: Tensor, t: Tensor, *_: object) -> Tensor:
        fed.append(x)
        told.append(float(t[0]))
        return unet(x, t)

    condition = Conditioning(torch.zeros(len(first), 1, 1, dtype=dtype))
    x = sample(case.solver, conditioned(denoiser(listening, prediction), condition), schedule[0].scale * first,
               schedule, TABLE, noise=lambda *_: next(fresh))
    assert len(told) == case.solver.calls(schedule), "calls() must say how often the network was asked"
    return Walk(fed, told, x / schedule[-1].scale)


def told_as(schedule: Schedule, told: list[float], slack: float) -> Schedule:
    """The same levels with the reference's timesteps, which are the whole parts of ours but for rounding."""
    assert all(-slack < level.t - t < 1 + slack for level, t in zip(schedule, told, strict=False))
    return [*(level._replace(t=t) for level, t in zip(schedule, told, strict=False)), schedule[-1]]


def epsilon_of_v(unet: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The network that says epsilon wherever this one says v: epsilon = alpha v + sqrt(1 - alpha^2) x."""
    alphas_cumprod = torch.from_numpy(TABLE.alphas_cumprod.copy())

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        squared = alphas_cumprod[t.long()].view(-1, 1, 1, 1)
        return (squared.sqrt() * unet(x, t) + (1 - squared).sqrt() * x).to(x.dtype)

    return epsilon
