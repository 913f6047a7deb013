"""Every sampler beside diffusers, step by step, each fed its own outputs, on a toy UNet in float64.

Twice: the reference as it is, which computes its tables (and Euler and DPM-Solver their steps) in float32; and the
reference with its word `float32` read as float64, where nothing but rounding in the last digits may differ.
Where the reference is wrong, ours follows the mathematics: test_sampler_faults.py says why.
"""
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from comparison import assert_close
from reference.schedulers import (
    ANCESTRAL,
    DDIM,
    DDPM,
    DPM,
    EULER,
    LEADING,
    LINSPACE,
    NO_CLIP,
    PNDM,
    SD15,
    TABLE,
    TRAILING,
    module_of,
    scheduler_of,
    widen,
)
from torch import Tensor

from minisd.samplers.denoiser import Conditioning, conditioned, denoiser
from minisd.samplers.loop import Interval, Solver, sample
from minisd.samplers.multistep import PLMS, DPMMultistep
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import (
    Spacing,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
    trailing,
)

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")

STEPS = (1, 2, 5, 20, 50)
SHAPE = (2, 4, 6, 6)
WITHIN = 5e-6                                       # relative to the largest value of the step
TINY_NOISE = 1e-9                                   # DDPM's last variance is clamped to 1e-20, not 0, in diffusers


# ---------------------------------------------------------------- what is compared
@dataclass(frozen=True)
class Case:
    """One diffusers scheduler and the same thing in ours."""
    reference: str                                  # "module:class" under diffusers.schedulers
    config: dict[str, object]
    solver: Solver
    spacing: Spacing
    last: str = "clean"
    eta: float = 0.0                                # DDIM's argument to step
    at_least: int = 1                               # fewest steps where the reference is right
    dummy: bool = False                             # its last step has no length (and so ours is another)
    within: float = 1e-10                           # with the reference in float64


round_linspace = functools.partial(linspace, rounded=True)
round_karras = functools.partial(karras, rounded=True)
leading_of_dpm = functools.partial(leading, spare=1)


def dpm(order: int, extrapolate: str = "data", spacing: Spacing = linspace_rounded, at_least: int = 1,
        dummy: bool = False, last: str = "", settle: bool = True, **options: object) -> Case:
    """DPM-Solver in diffusers' words; noise prediction cannot end at sigma 0 there."""
    ours = {key: options.pop(key) for key in ("eta", "slope") if key in options}
    last = last or ("clean" if extrapolate == "data" else "first")
    algorithm = ("sde-" if ours.get("eta") else "") + ("dpmsolver++" if extrapolate == "data" else "dpmsolver")
    config = {"solver_order": order, "algorithm_type": algorithm, "solver_type": ours.get("slope", "midpoint"),
              "final_sigmas_type": "zero" if last == "clean" else "sigma_min", "lower_order_final": settle, **options}
    solver = DPMMultistep(order, extrapolate, settle=settle, **ours)
    return Case(DPM, config, solver, spacing, last, at_least=at_least, dummy=dummy)


CASES = {
    "ddim, sd1.5": Case(DDIM, {**SD15, **NO_CLIP}, Euler(), leading, "first"),
    "ddim, to sigma 0": Case(DDIM, {**LEADING, **NO_CLIP}, Euler(), leading),
    "ddim, eta 0.5": Case(DDIM, {**SD15, **NO_CLIP}, Euler(eta=0.5), leading, "first", eta=0.5),
    "ddim, eta 1": Case(DDIM, {**SD15, **NO_CLIP}, Euler(eta=1.0), leading, "first", eta=1.0),
    "ddim trailing": Case(DDIM, {**TRAILING, **NO_CLIP}, Euler(), trailing),
    "ddpm leading": Case(DDPM, {**LEADING, **NO_CLIP}, Euler(eta=1.0), leading, within=TINY_NOISE),
    "ddpm trailing": Case(DDPM, {**TRAILING, **NO_CLIP}, Euler(eta=1.0), trailing, within=TINY_NOISE),
    "ddpm linspace": Case(DDPM, {**LINSPACE, **NO_CLIP}, Euler(eta=1.0), round_linspace, at_least=2, within=TINY_NOISE),
    "pndm, sd1.5": Case(PNDM, {**SD15, "skip_prk_steps": True}, PLMS(), leading, "first"),
    "pndm, to sigma 0": Case(PNDM, {**LEADING, "set_alpha_to_one": True, "skip_prk_steps": True}, PLMS(), leading),
    "pndm trailing": Case(PNDM, {**TRAILING, "skip_prk_steps": True}, PLMS(), trailing, "first"),
    "euler leading": Case(EULER, LEADING, Euler(), leading),
    "euler trailing": Case(EULER, TRAILING, Euler(), trailing),
    "euler linspace": Case(EULER, LINSPACE, Euler(), linspace, at_least=2),
    "euler karras": Case(EULER, {**LINSPACE, "use_karras_sigmas": True}, Euler(), karras, at_least=2),
    "euler exponential": Case(EULER, {**LINSPACE, "use_exponential_sigmas": True}, Euler(), exponential, at_least=2),
    "euler linspace, to the first level": Case(EULER, {**LEADING, "final_sigmas_type": "sigma_min"}, Euler(),
                                               leading, "first"),
    "euler a leading": Case(ANCESTRAL, LEADING, Euler(eta=1.0), leading),
    "euler a trailing": Case(ANCESTRAL, TRAILING, Euler(eta=1.0), trailing),
    "euler a linspace": Case(ANCESTRAL, LINSPACE, Euler(eta=1.0), linspace, at_least=2),
    "dpm++1": dpm(1),
    "dpm++2m": dpm(2),
    "dpm++2m heun": dpm(2, slope="heun"),
    "dpm++3m": dpm(3),
    "dpm++3m, unsettled": dpm(3, settle=False),
    "dpm++2m leading": dpm(2, spacing=leading_of_dpm, **LEADING),
    "dpm++3m leading": dpm(3, spacing=leading_of_dpm, **LEADING),
    "dpm++2m trailing": dpm(2, spacing=trailing, **TRAILING),
    "dpm++2m karras": dpm(2, spacing=round_karras, use_karras_sigmas=True),
    "dpm++3m karras": dpm(3, spacing=round_karras, use_karras_sigmas=True),
    "dpm++2m, to the first level": dpm(2, last="first"),
    "dpm++2m sde": dpm(2, eta=1.0),
    "dpm++2m sde heun": dpm(2, eta=1.0, slope="heun"),
    "dpm++2m sde karras": dpm(2, eta=1.0, spacing=round_karras, use_karras_sigmas=True),
    "dpm-solver 1": dpm(1, "noise"),
    "dpm-solver 2m": dpm(2, "noise"),
    "dpm-solver 2m heun": dpm(2, "noise", slope="heun"),
    "dpm-solver 3m": dpm(3, "noise"),
    "dpm-solver 3m, unsettled": dpm(3, "noise", settle=False),
    "dpm-solver 2m leading": dpm(2, "noise", spacing=leading_of_dpm, **LEADING),
    "dpm-solver 2m trailing": dpm(2, "noise", spacing=trailing, **TRAILING),
    "dpm-solver 2m karras": dpm(2, "noise", spacing=round_karras, use_karras_sigmas=True, dummy=True),
    "dpm-solver 2m sde": dpm(2, "noise", eta=1.0),
    "dpm-solver 2m sde heun": dpm(2, "noise", eta=1.0, slope="heun"),
}


# ---------------------------------------------------------------- how
def toy_unet() -> Callable[[Tensor, Tensor], Tensor]:
    """Not linear, different at every timestep, output of about unit size, in float64: two layers per pixel."""
    g = torch.Generator().manual_seed(3)
    into, out = (torch.randn(shape, generator=g, dtype=torch.float64) / 2 for shape in ((8, 4), (4, 8)))
    phase = torch.arange(8, dtype=torch.float64).view(8, 1)

    def unet(x: Tensor, t: Tensor, *_: object) -> Tensor:
        t = t.to(torch.float32).to(torch.float64).view(-1, 1, 1)          # as a UNet's timestep features take it
        pixels = x.flatten(2)                                             # [b, c, h, w] -> [b, c, h w]
        hidden = torch.tanh(into @ pixels + torch.sin(t / 150 + phase))
        return (out @ hidden + 0.4 * pixels).view_as(x)

    return unet


@dataclass(frozen=True)
class Walk:
    """x / scale after every step, and the timesteps told to the network at every call."""
    states: list[Tensor]
    told: list[float]


def v_as_epsilon(unet: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The network that says epsilon wherever this one says v: epsilon = alpha v + sqrt(1 - alpha^2) x."""
    alphas_cumprod = torch.from_numpy(TABLE.alphas_cumprod.copy())

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        squared = alphas_cumprod[t.long()].view(-1, 1, 1, 1)
        return squared.sqrt() * unet(x, t) + (1 - squared).sqrt() * x

    return epsilon


def theirs(case: Case, prediction: str, n: int, noises: list[Tensor], monkeypatch: pytest.MonkeyPatch,
           unet: Callable[..., Tensor]) -> Walk:
    fresh = iter(noises[1:])
    monkeypatch.setattr(module_of(case.reference), "randn_tensor",
                        lambda shape, generator, device, dtype: next(fresh).to(dtype), raising=False)
    if case.reference == PNDM and prediction == "v":        # its own way with v is wrong: see test_sampler_faults
        unet, prediction = v_as_epsilon(unet), "epsilon"
    scheduler = scheduler_of(case.reference, prediction=prediction, **case.config)
    scheduler.set_timesteps(n)
    sigma_space = case.reference in (EULER, ANCESTRAL)
    scale = [math.sqrt(1 + s ** 2) for s in scheduler.sigmas.tolist()] if sigma_space else []
    x = noises[0] * (scale[0] if sigma_space else 1.0)
    walk = Walk([], [])
    for i, t in enumerate(scheduler.timesteps):
        out = unet(scheduler.scale_model_input(x, t), t.expand(len(x)))
        options = {"eta": case.eta} if case.reference == DDIM else {}
        x = scheduler.step(out, t, x, **options).prev_sample
        walk.states.append(x / scale[i + 1] if sigma_space else x)
        walk.told.append(float(t))
    if case.reference == PNDM and n > 1:
        walk.states.pop(0)                                  # the look-ahead's guess, from which it goes back
    return walk


def ours(case: Case, prediction: str, n: int, noises: list[Tensor], unet: Callable[..., Tensor]) -> Walk:
    schedule = case.spacing(TABLE, n, last=case.last)
    fresh = iter(noises[1:])
    walk = Walk([], [])

    def listening(x: Tensor, t: Tensor, *rest: object) -> Tensor:
        walk.told.append(float(t[0]))
        return unet(x, t)

    def keep(x: Tensor, s: Interval) -> Tensor:
        walk.states.append(x / s.next.scale)
        return x

    condition = Conditioning(torch.zeros(len(noises[0]), 1, 1, dtype=torch.float64))
    sample(case.solver, conditioned(denoiser(listening, prediction), condition), schedule[0].scale * noises[0],
           schedule, TABLE, noise=lambda *_: next(fresh), on_step=keep)
    assert len(walk.told) == case.solver.calls(schedule), "calls() must say how often the network was asked"
    return walk


def noise_list(count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(11)
    return [torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_diffusers(name: str, prediction: str, precision: str,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    if precision == "float64":
        widen(case.reference, monkeypatch)
    unet, worst = toy_unet(), 0.0
    for n in (n for n in STEPS if n >= case.at_least and (n, case.spacing) != (1, leading)):  # see test_schedules
        noises = noise_list(n + 2)
        reference = theirs(case, prediction, n, noises, monkeypatch, unet)
        mine = ours(case, prediction, n, noises, unet)
        # In float32 the reference finds a Karras sigma's timestep to three digits after the point.
        told = pytest.approx(reference.told, rel=1e-7, abs=2e-3 if precision == "float32" else 1e-9)
        assert mine.told == told, f"{name}, n={n}: timesteps told to the network"
        assert len(mine.states) == len(reference.states) == n
        for i in range(n - 1 if case.dummy else n):
            worst = max(worst, assert_close(f"{name}, {prediction}, step {i + 1} of {n}", mine.states[i],
                                            reference.states[i], case.within if precision == "float64" else WITHIN))
    print(f"worst: {worst:.1e}")                    # pytest -rP shows it
