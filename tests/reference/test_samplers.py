"""Every sampler beside diffusers, step by step, each fed its own outputs, on a toy UNet in float64.

Twice: the reference as it is, which computes its tables (and Euler and DPM-Solver their steps) in float32; and the
reference with its word `float32` read as float64, where nothing but rounding in the last digits may differ.
Where the reference is wrong, ours follows the mathematics, and a test at the end says why.
"""
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minisd.samplers.denoiser import Conditioning, conditioned, denoiser
from minisd.samplers.loop import Interval, Point, Solver, sample
from minisd.samplers.multistep import PLMS, DPMMultistep
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import (
    NoiseTable,
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

TABLE = NoiseTable()
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


DDIM = "scheduling_ddim:DDIMScheduler"
DDPM = "scheduling_ddpm:DDPMScheduler"
PNDM = "scheduling_pndm:PNDMScheduler"
EULER = "scheduling_euler_discrete:EulerDiscreteScheduler"
ANCESTRAL = "scheduling_euler_ancestral_discrete:EulerAncestralDiscreteScheduler"
DPM = "scheduling_dpmsolver_multistep:DPMSolverMultistepScheduler"

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
NO_CLIP = {"clip_sample": False}
SD15 = {**LEADING, "set_alpha_to_one": False}       # Stable Diffusion 1.5's own scheduler config

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
class Wide:
    """A module in which the name float32 means float64."""
    def __init__(self, module: object) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


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


def module_of(reference: str) -> ModuleType:
    return importlib.import_module("diffusers.schedulers." + reference.split(":")[0])


def scheduler_of(reference: str, prediction: str = "epsilon", **config: object) -> Any:
    """A diffusers scheduler on Stable Diffusion's table."""
    words = {"epsilon": "epsilon", "v": "v_prediction"}
    return getattr(module_of(reference), reference.split(":")[1])(
        beta_start=TABLE.beta_start, beta_end=TABLE.beta_end, beta_schedule="scaled_linear",
        num_train_timesteps=TABLE.steps, prediction_type=words[prediction], **config)


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
    if case.reference == PNDM and prediction == "v":        # its own way with v is wrong: see the last tests
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


def difference(name: str, mine: list[Tensor], reference: list[Tensor], within: float) -> float:
    """The worst relative difference; a failure names the step, the place and both values."""
    assert len(mine) == len(reference), f"{name}: {len(mine)} steps, {len(reference)} in the reference"
    worst = 0.0
    for step, (a, b) in enumerate(zip(mine, reference, strict=True)):
        gap = (a - b.to(a.dtype)).abs()
        relative = float(gap.max() / b.abs().max())
        where = np.unravel_index(int(gap.argmax()), gap.shape)
        assert relative <= within, (f"{name}, after step {step + 1} of {len(mine)}: {relative:.2e} > {within:.0e} at "
                                    f"{[int(i) for i in where]}: {float(a[where])!r}, reference {float(b[where])!r}")
        worst = max(worst, relative)
    return worst


def noise_list(count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(11)
    return [torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(count)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small lose more by sharing a second core than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def widen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a reference module compute in the precision named."""
    def apply(reference: str, precision: str) -> None:
        if precision == "float64":
            monkeypatch.setattr(module_of(reference), "torch", Wide(torch))
            monkeypatch.setattr(module_of(reference), "np", Wide(np))
    return apply


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_diffusers(name: str, prediction: str, precision: str,
                                         widen: Callable[[str, str], None],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    widen(case.reference, precision)
    unet, worst = toy_unet(), 0.0
    for n in (n for n in STEPS if n >= case.at_least):
        noises = noise_list(n + 2)
        reference = theirs(case, prediction, n, noises, monkeypatch, unet)
        mine = ours(case, prediction, n, noises, unet)
        # In float32 the reference finds a Karras sigma's timestep to three digits after the point.
        told = pytest.approx(reference.told, rel=1e-7, abs=2e-3 if precision == "float32" else 1e-9)
        assert mine.told == told, f"{name}, n={n}: timesteps told to the network"
        until = n - 1 if case.dummy else n
        worst = max(worst, difference(f"{name} {prediction} n={n}", mine.states[:until], reference.states[:until],
                                      case.within if precision == "float64" else WITHIN))
    print(f"worst: {worst:.1e}")                    # pytest -rP shows it


# ---------------------------------------------------------------- where the reference is wrong
def gaussian(variance: float) -> Callable[[Tensor, float], Tensor]:
    """The perfect denoiser of data N(0, variance): x at sigma -> x0."""
    return lambda x, sigma: x * variance / (variance + sigma ** 2)


@pytest.mark.parametrize(("spacing", "config", "n"), [(round_linspace, LINSPACE, 20), (trailing, TRAILING, 7)])
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


def test_pndm_of_diffusers_loses_its_order_on_v(widen: Callable[[str, str], None]) -> None:
    """It mixes the v of four levels and makes noise of the mixture with the present x alone: order 1.

    With Gaussian data the walk has a closed form: x scales by sqrt((variance + to^2) / (variance + from^2)).
    """
    widen(PNDM, "float64")
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


def test_third_order_sde_of_diffusers_has_a_wrong_sign(widen: Callable[[str, str], None]) -> None:
    """Its weight of the second difference tends to -1 as the step shrinks, where k-diffusion's and ours tend to 0.

    The answers here are a parabola in lambda, whose integral over one step is known; the noise is zero.
    """
    widen(DPM, "float64")

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
