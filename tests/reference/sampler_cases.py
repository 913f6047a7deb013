"""What is compared with diffusers: each of its schedulers that samples an SD model, in its words and in ours."""
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from reference.schedulers import (
    ANCESTRAL,
    DDIM,
    DDPM,
    DEIS,
    DPM,
    EULER,
    HEUN,
    KDPM2,
    KDPM2_ANCESTRAL,
    LCM,
    LEADING,
    LINSPACE,
    LMS,
    NO_CLIP,
    PNDM,
    SD15,
    SDE,
    SINGLESTEP,
    TCD,
    TRAILING,
    UNIPC,
)

from minisd.samplers import consistency, multistep
from minisd.samplers.consistency import distilled
from minisd.samplers.loop import Solver
from minisd.samplers.multistep import PLMS, DPMMultistep
from minisd.samplers.onestep import DPM2, DPMppSDE, Euler, Heun
from minisd.samplers.schedule import (
    End,
    Spacing,
    beta,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
    trailing,
)
from minisd.samplers.singlestep import DPMSinglestep
from minisd.samplers.unipc import UniPC

COUNTS = (1, 2, 5, 12, 25)                          # 0, 1 and 2 left over of groups of three; under 15 and above
OF_A_THOUSAND = (1, 2, 5, 20, 25)                   # where the reference is right only for divisors of 1000
ALL = ("epsilon", "v", "x0")
NOT_X0 = ("epsilon", "v")


@dataclass(frozen=True)
class Case:
    """One diffusers scheduler and the same thing in ours."""
    method: str                                     # the row of the table that benchmarks/samplers.py prints
    reference: str                                  # "module:class" under diffusers.schedulers
    config: Mapping[str, object]
    solver: Solver
    spacing: Spacing
    last: End = "clean"
    step: Mapping[str, object] = field(default_factory=dict)      # arguments to the reference's step
    at_least: int = 1                               # fewest steps where the reference is right
    dummy: bool = False                             # its last step has no length, or is NaN (and so ours is another)
    predictions: tuple[str, ...] = ALL
    counts: tuple[int, ...] = COUNTS

    @property
    def walks(self) -> list[tuple[str, int]]:
        """Every count for epsilon, two for the other predictions, which do not depend on the count."""
        return [(prediction, n) for prediction in self.predictions
                for n in (self.counts if prediction == "epsilon" else self.counts[2:4]) if n >= self.at_least]

    @property
    def told_whole(self) -> bool:
        """Whether the network is told no more than the whole part of a timestep."""
        return self.reference in (DPM, SINGLESTEP, UNIPC, DEIS)


# ---------------------------------------------------------------- spacings in diffusers' words
KARRAS, EXPONENTIAL, BETA = ({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))
round_linspace = functools.partial(linspace, rounded=True)
round_karras = functools.partial(karras, rounded=True)
leading_of_dpm = functools.partial(leading, spare=1)


# Name, config, our spacing, and the fewest steps: with one, diffusers' linspace begins at the clean end.
IN_SIGMA: tuple[tuple[str, dict[str, object], Spacing, int], ...] = (
    ("leading", LEADING, leading, 2), ("trailing", TRAILING, trailing, 1), ("linspace", LINSPACE, linspace, 2),
    ("karras", {**LINSPACE, **KARRAS}, karras, 2), ("exponential", {**LINSPACE, **EXPONENTIAL}, exponential, 2),
    ("beta", {**LINSPACE, **BETA}, beta, 2))
IN_WHOLE_T: tuple[tuple[str, dict[str, object], Spacing, int], ...] = (
    ("linspace", LINSPACE, linspace_rounded, 1), ("leading", LEADING, leading_of_dpm, 1),
    ("trailing", TRAILING, trailing, 1), ("karras", KARRAS, round_karras, 1),
    ("exponential", EXPONENTIAL, exponential, 1), ("beta", BETA, beta, 2))
OF_SINGLESTEP = (("linspace", {}, linspace_rounded, 1), *IN_WHOLE_T[3:])                 # it knows no other
NO_LENGTH = ("karras", "exponential", "beta")      # where the last level is repeated if the end is not sigma 0


def spread(name: str, case: Callable[[dict[str, object], Spacing], Case],
           rows: tuple[tuple[str, dict[str, object], Spacing, int], ...]) -> dict[str, Case]:
    """A case on each spacing of a table."""
    return {f"{name} {word}": replace(case(config, spacing), at_least=at_least)
            for word, config, spacing, at_least in rows}


def to_first(name: str, case: Callable[[dict[str, object], Spacing], Case],
             rows: tuple[tuple[str, dict[str, object], Spacing, int], ...] = IN_WHOLE_T) -> dict[str, Case]:
    """The same, ending at the first trained level."""
    found = spread(name, case, rows)
    return {key: replace(one, last="first", dummy=key.endswith(NO_LENGTH)) for key, one in found.items()}


# ---------------------------------------------------------------- DDIM and kin
CASES: dict[str, Case] = {
    "ddim, sd1.5": Case("DDIM", DDIM, {**SD15, **NO_CLIP}, Euler(), leading, "first", at_least=2),
    "ddim, to sigma 0": Case("DDIM", DDIM, {**LEADING, **NO_CLIP}, Euler(), leading, at_least=2),
    "ddim, eta 0.5": Case("DDIM", DDIM, {**SD15, **NO_CLIP}, Euler(eta=0.5), leading, "first", {"eta": 0.5}, 2),
    "ddim, eta 1": Case("DDIM", DDIM, {**SD15, **NO_CLIP}, Euler(eta=1.0), leading, "first", {"eta": 1.0}, 2),
    "ddim trailing": Case("DDIM", DDIM, {**TRAILING, **NO_CLIP}, Euler(), trailing, counts=OF_A_THOUSAND),
    "ddpm leading": Case("DDPM", DDPM, {**LEADING, **NO_CLIP}, Euler(eta=1.0), leading, at_least=2),
    "ddpm trailing": Case("DDPM", DDPM, {**TRAILING, **NO_CLIP}, Euler(eta=1.0), trailing),
    "ddpm linspace": Case("DDPM", DDPM, {**LINSPACE, **NO_CLIP}, Euler(eta=1.0), round_linspace, at_least=2),
    # diffusers' own way with v is wrong: see test_sampler_faults, and `epsilon_of_v` in walks.
    "pndm, sd1.5": Case("PNDM / PLMS", PNDM, {**SD15, "skip_prk_steps": True}, PLMS(), leading, "first", at_least=2,
                        predictions=NOT_X0),
    "pndm, to sigma 0": Case("PNDM / PLMS", PNDM, {**LEADING, "set_alpha_to_one": True, "skip_prk_steps": True},
                             PLMS(), leading, at_least=2, predictions=NOT_X0),
    "pndm trailing": Case("PNDM / PLMS", PNDM, {**TRAILING, "skip_prk_steps": True}, PLMS(), trailing, "first",
                          predictions=NOT_X0, counts=OF_A_THOUSAND),
}

# ---------------------------------------------------------------- k-diffusion's in diffusers
CASES |= spread("euler", lambda config, spacing: Case("Euler", EULER, config, Euler(), spacing), IN_SIGMA)
CASES["euler linspace, to the first level"] = Case("Euler", EULER, {**LEADING, "final_sigmas_type": "sigma_min"},
                                                   Euler(), leading, "first", at_least=2)
CASES |= spread("euler a", lambda config, spacing: Case("Euler a", ANCESTRAL, config, Euler(eta=1.0), spacing,
                                                        predictions=NOT_X0), IN_SIGMA[:3])
CASES |= spread("heun", lambda config, spacing: Case("Heun", HEUN, config, Heun(), spacing), IN_SIGMA)
for order in (4, 3, 1):
    CASES |= spread(f"lms {order}", lambda config, spacing, order=order: Case(
        "LMS", LMS, config, multistep.LMS(order), spacing, step={"order": order}), IN_SIGMA)
WITH_ROUND_KARRAS = tuple((word, config, round_karras if word == "karras" else spacing, at_least)
                              for word, config, spacing, at_least in IN_SIGMA)
CASES |= spread("dpm2", lambda config, spacing: Case("DPM2", KDPM2, config, DPM2(), spacing, predictions=NOT_X0),
                WITH_ROUND_KARRAS)
CASES |= spread("dpm2 a", lambda config, spacing: Case("DPM2 a", KDPM2_ANCESTRAL, config, DPM2(eta=1.0), spacing,
                                                       predictions=NOT_X0), WITH_ROUND_KARRAS)
CASES |= spread("dpm++ sde", lambda config, spacing: Case("DPM++ SDE", SDE, config, DPMppSDE(), spacing,
                                                          predictions=NOT_X0), IN_SIGMA)


# ---------------------------------------------------------------- DPM-Solver
def dpm(method: str, order: int, extrapolate: str = "data", settle: bool = True,
        **options: object) -> Callable[[dict[str, object], Spacing], Case]:
    """Multistep; noise prediction cannot end at sigma 0 in diffusers."""
    algorithm = ("sde-" if options.get("eta") else "") + ("dpmsolver++" if extrapolate == "data" else "dpmsolver")
    words = {"solver_order": order, "algorithm_type": algorithm, "lower_order_final": settle,
             "solver_type": options.get("slope", "midpoint"),
             "final_sigmas_type": "zero" if extrapolate == "data" else "sigma_min"}
    solver = DPMMultistep(order, extrapolate, settle=settle, **options)
    return lambda config, spacing: Case(method, DPM, {**words, **config}, solver, spacing)


CASES |= spread("dpm++1", dpm("DPM++ 1", 1), IN_WHOLE_T[:1])
CASES |= spread("dpm++2m", dpm("DPM++ 2M", 2), IN_WHOLE_T)
CASES |= spread("dpm++2m heun", dpm("DPM++ 2M", 2, slope="heun"), IN_WHOLE_T[:1])
CASES |= spread("dpm++3m", dpm("DPM++ 3M", 3), IN_WHOLE_T)
CASES |= spread("dpm++3m, unsettled", dpm("DPM++ 3M", 3, settle=False), IN_WHOLE_T[:1])
CASES |= to_first("dpm++2m, to the first level", lambda config, spacing: replace(
    dpm("DPM++ 2M", 2)(config, spacing), config={
        **dpm("DPM++ 2M", 2)(config, spacing).config, "final_sigmas_type": "sigma_min"}), IN_WHOLE_T[:1])
CASES |= spread("dpm++2m sde", dpm("DPM++ 2M SDE", 2, eta=1.0), IN_WHOLE_T)
CASES |= spread("dpm++2m sde heun", dpm("DPM++ 2M SDE Heun", 2, eta=1.0, slope="heun"), IN_WHOLE_T)
CASES |= to_first("dpm-solver 1", dpm("DPM-Solver multistep", 1, "noise"), IN_WHOLE_T[:1])
CASES |= to_first("dpm-solver 2m", dpm("DPM-Solver multistep", 2, "noise"))
CASES |= to_first("dpm-solver 2m heun", dpm("DPM-Solver multistep", 2, "noise", slope="heun"), IN_WHOLE_T[:1])
CASES |= to_first("dpm-solver 3m", dpm("DPM-Solver multistep", 3, "noise"))
CASES |= to_first("dpm-solver 3m, unsettled", dpm("DPM-Solver multistep", 3, "noise", settle=False), IN_WHOLE_T[:1])
CASES |= to_first("dpm-solver 2m sde", dpm("DPM-Solver SDE", 2, "noise", eta=1.0))
CASES |= to_first("dpm-solver 2m sde heun", dpm("DPM-Solver SDE", 2, "noise", eta=1.0, slope="heun"), IN_WHOLE_T[:1])


def single(method: str, order: int, extrapolate: str, slope: str,
           eta: float = 0.0) -> Callable[[dict[str, object], Spacing], Case]:
    """Singlestep.  Of two intervals left at the end of order 2, ours and the authors' are a whole group."""
    algorithm = ("sde-" if eta else "") + ("dpmsolver++" if extrapolate == "data" else "dpmsolver")
    words = {"solver_order": order, "algorithm_type": algorithm, "solver_type": slope,
             "final_sigmas_type": "zero" if extrapolate == "data" else "sigma_min",
             "lower_order_final": extrapolate == "data" or order == 3}
    solver = DPMSinglestep(order, extrapolate, eta, slope)
    return lambda config, spacing: Case(method, SINGLESTEP, {**words, **config}, solver, spacing)


for slope in ("midpoint", "heun"):
    for order in (1, 2, 3):
        CASES |= spread(f"dpm++{order}s {slope}", single("DPM++ singlestep", order, "data", slope), OF_SINGLESTEP)
        CASES |= to_first(f"dpm-solver {order}s {slope}", single("DPM-Solver singlestep", order, "noise", slope),
                          OF_SINGLESTEP)
    CASES |= spread(f"dpm++2s sde {slope}", single("DPM++ singlestep SDE", 2, "data", slope, 1.0), OF_SINGLESTEP)
CASES |= spread("dpm++3s sde midpoint", single("DPM++ singlestep SDE", 3, "data", "midpoint", 1.0), OF_SINGLESTEP)


# ---------------------------------------------------------------- UniPC, DEIS, LCM, TCD
def unipc(order: int, weight: str, extrapolate: str = "data") -> Callable[[dict[str, object], Spacing], Case]:
    words = {"solver_order": order, "solver_type": weight, "predict_x0": extrapolate == "data",
             "final_sigmas_type": "zero" if extrapolate == "data" else "sigma_min"}
    return lambda config, spacing: Case("UniPC", UNIPC, {**words, **config}, UniPC(order, weight, extrapolate),
                                        spacing, dummy=weight == "bh1" and extrapolate == "data")


for order in (1, 2, 3):
    for weight in ("bh1", "bh2"):
        CASES |= spread(f"unipc {order} {weight}", unipc(order, weight), IN_WHOLE_T)
        CASES |= to_first(f"unipc {order} {weight} of noise", unipc(order, weight, "noise"), IN_WHOLE_T[:4])
for order in (1, 2, 3):
    solver = DPMMultistep(order, "noise", slope="heun", curvature="exact")
    CASES |= to_first(f"deis {order}", lambda config, spacing, order=order, solver=solver: Case(
        "DEIS", DEIS, {**config, "solver_order": order}, solver, spacing))
CASES["lcm"] = Case("LCM", LCM, {}, consistency.LCM(), distilled)
for gamma in (0.0, 0.3, 1.0):
    CASES[f"tcd {gamma}"] = Case("TCD", TCD, {}, consistency.TCD(gamma), distilled, "first", {"eta": gamma})
