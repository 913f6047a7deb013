"""The names people know, as data: a solver, the spacing it walks on, and where it ends.

Every method can be put on any spacing by naming it: "euler", "euler karras", "ddim trailing".  Case, spaces and
hyphens do not matter, and the spellings of A1111, ComfyUI and k-diffusion are understood: "DPM++ 2M Karras",
"dpmpp_2m", "k_dpmpp_2m_ka".
"""
from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, cast

from minisd.errors import USAGE, MinisdError
from minisd.samplers.adaptive import DPMAdaptive
from minisd.samplers.churn import Churn
from minisd.samplers.consistency import LCM, TCD, distilled
from minisd.samplers.loop import Solver
from minisd.samplers.multistep import LMS, PLMS, DPMMultistep
from minisd.samplers.onestep import DPM2, DPMpp2S, DPMppSDE, Euler, Heun
from minisd.samplers.schedule import (
    End,
    NoiseTable,
    Schedule,
    Spacing,
    beta,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
    polyexponential,
    sgm_uniform,
    simple,
    trailing,
)
from minisd.samplers.singlestep import DPMSinglestep, thirds
from minisd.samplers.unipc import UniPC


class Method(NamedTuple):
    """A row of the table below; `display` is the name in A1111's list, or the nearest to one."""
    names: tuple[str, ...]             # the first is ours
    display: str
    solver: Solver
    spacing: str                       # used unless the name says another
    last: End = "clean"
    noise: Literal["fresh", "brownian"] = "fresh"      # Brownian where k-diffusion has it: see samplers.noise
    adaptive: bool = False             # takes its own steps: calls() is the fewest, pictures are drawn one at a time


METHODS = (
    Method(("euler",), "Euler", Euler(), "linspace"),
    Method(("euler a", "euler ancestral"), "Euler a", Euler(eta=1.0), "linspace"),
    Method(("heun",), "Heun", Heun(), "linspace"),
    Method(("lms",), "LMS", LMS(), "linspace"),
    Method(("dpm2",), "DPM2", DPM2(), "linspace"),
    Method(("dpm2 a", "dpm2 ancestral"), "DPM2 a", DPM2(eta=1.0), "linspace"),
    # Stable Diffusion's DDIM and PNDM end at the first trained level (set_alpha_to_one=false), not at sigma 0.
    Method(("ddim",), "DDIM", Euler(), "leading", "first"),
    Method(("ddpm",), "DDPM", Euler(eta=1.0), "leading"),
    Method(("pndm", "plms"), "PLMS", PLMS(), "leading", "first"),
    # DPM-Solver predicts noise, of which there is none at sigma 0.
    Method(("dpm-solver", "dpm-solver 2m"), "DPM-Solver", DPMMultistep(2, "noise"), "rounded", "first"),
    Method(("dpm-solver 3m",), "DPM-Solver 3M", DPMMultistep(3, "noise", curvature="exact"), "rounded", "first"),
    Method(("dpm-solver 2s",), "DPM-Solver 2S", DPMSinglestep(2, "noise"), "rounded", "first"),
    Method(("dpm-solver 3s",), "DPM-Solver 3S", DPMSinglestep(3, "noise"), "rounded", "first"),
    Method(("dpm fast",), "DPM fast", DPMSinglestep(3, "noise"), "thirds", "first"),
    Method(("dpm adaptive",), "DPM adaptive", DPMAdaptive(), "exponential", "first", adaptive=True),
    Method(("dpm++2m", "dpm-solver++"), "DPM++ 2M", DPMMultistep(2), "linspace"),
    Method(("dpm++3m",), "DPM++ 3M", DPMMultistep(3, curvature="exact"), "linspace"),
    Method(("dpm++2s",), "DPM++ 2S", DPMSinglestep(2), "rounded"),
    Method(("dpm++3s",), "DPM++ 3S", DPMSinglestep(3), "rounded"),
    Method(("dpm++2s a", "dpm++2s ancestral"), "DPM++ 2S a", DPMpp2S(), "linspace"),
    Method(("dpm++sde",), "DPM++ SDE", DPMppSDE(), "linspace", noise="brownian"),
    Method(("dpm++2m sde",), "DPM++ 2M SDE", DPMMultistep(2, eta=1.0), "linspace", noise="brownian"),
    Method(("dpm++2m sde heun",), "DPM++ 2M SDE Heun", DPMMultistep(2, eta=1.0, slope="heun"), "linspace",
           noise="brownian"),
    Method(("dpm++3m sde",), "DPM++ 3M SDE", DPMMultistep(3, eta=1.0, slope="heun", settle=False), "linspace",
           noise="brownian"),
    Method(("unipc", "unipc bh2"), "UniPC", UniPC(2), "rounded"),
    Method(("unipc bh1",), "UniPC bh1", UniPC(2, "bh1"), "rounded"),
    Method(("unipc 3",), "UniPC 3", UniPC(3), "rounded"),
    # Guided, order 3 amplifies what is left of the noise in the last steps: order 2 is diffusers' default, too.
    Method(("deis", "deis 2"), "DEIS", DPMMultistep(2, "noise", slope="heun"), "rounded", "first"),
    Method(("deis 3",), "DEIS 3", DPMMultistep(3, "noise", slope="heun", curvature="exact"), "rounded", "first"),
    Method(("lcm",), "LCM", LCM(), "distilled"),
    Method(("tcd",), "TCD", TCD(), "distilled", "first"),
)

# The word in a name -> the spacing, and its schedule type in A1111's metadata (the last four have none there).
SPACINGS: dict[str, tuple[Spacing, str]] = {
    "linspace": (linspace, "Uniform"),
    "karras": (karras, "Karras"),
    "exponential": (exponential, "Exponential"),
    "polyexponential": (polyexponential, "Polyexponential"),
    "sgm_uniform": (sgm_uniform, "SGM Uniform"),
    "simple": (simple, "Simple"),
    "beta": (beta, "Beta"),
    "leading": (leading, "DDIM"),
    "trailing": (trailing, "Trailing"),
    "rounded": (linspace_rounded, "Rounded"),
    "thirds": (thirds, "Thirds"),
    "distilled": (distilled, "Distilled"),
}
SHORT = {"ka": "karras", "sgm": "sgm_uniform"}


@dataclass(frozen=True)
class Recipe:
    """A solver and the schedule it walks; `display` and `schedule_type` are for a picture's metadata."""
    name: str
    display: str
    schedule_type: str
    solver: Solver
    spacing: Spacing
    last: End
    noise: Literal["fresh", "brownian"]
    adaptive: bool

    def schedule(self, table: NoiseTable, n: int) -> Schedule:
        """n + 1 levels, 1 <= n <= table.steps."""
        if not 1 <= n <= table.steps:
            raise MinisdError(f"{n} steps", where=f"sampler {self.name}",
                              why=f"the network was trained on {table.steps} noise levels",
                              remedy=f"ask for 1 to {table.steps} steps", code=USAGE)
        return self.spacing(table, n, last=self.last)

    def calls(self, table: NoiseTable, n: int) -> int:
        """Network calls for n steps (PNDM makes n + 1); the fewest, where the method is adaptive."""
        return self.solver.calls(self.schedule(table, n))


def sampler(name: str, *, eta: float | None = None, churn: Churn | None = None) -> Recipe:
    """The recipe of a name; an unknown name is an error that lists the nearest.

    `eta` and `churn` replace the method's own, where it has them.
    """
    key = _key(name)
    if key not in _RECIPES:
        near = difflib.get_close_matches(key, _RECIPES, n=5, cutoff=0.5)
        raise MinisdError(f"no sampler is called {name!r}", where="--sampler",
                          why="nearest: " + ", ".join(dict.fromkeys(_RECIPES[k].name for k in near)) if near else "",
                          remedy=f"one of {', '.join(NAMES)}; a spacing may follow: {', '.join(SPACINGS)}", code=USAGE)
    recipe = _RECIPES[key]
    for option, value in (("eta", eta), ("churn", churn)):
        if value is not None:
            recipe = replace(recipe, solver=_with(recipe, option, value))
    return recipe


def _with(recipe: Recipe, option: str, value: object) -> Solver:
    """Its solver with another value of an option."""
    if option not in _options(recipe.solver):
        able = ", ".join(method.names[0] for method in METHODS if option in _options(method.solver))
        raise MinisdError(f"sampler {recipe.name} has no {option}", where=f"--{option}",
                          why="the method does not know it", remedy=f"leave it out, or take one of {able}", code=USAGE)
    return cast(Solver, replace(cast(Any, recipe.solver), **{option: value}))


def _options(solver: Solver) -> list[str]:
    return [field.name for field in fields(cast(Any, solver))]


def _key(name: str) -> str:
    """A name without what people spell differently: DPM++ 2M, dpmpp_2m, k_dpmpp_2m and dpm++2m are one."""
    bare = "".join(c for c in name.lower().strip().removeprefix("k_") if c.isalnum() or c == "+")
    return bare.replace("dpmpp", "dpm++")


def _recipes(methods: Sequence[Method]) -> dict[str, Recipe]:
    """Every spelling of every method, with and without every spelling of every spacing."""
    spellings = {word: (word, schedule_type) for word, (_, schedule_type) in SPACINGS.items()}
    found: dict[str, Recipe] = {}
    for method in methods:
        for word in ("", *SPACINGS):
            spacing, schedule_type = SPACINGS[word or method.spacing]
            recipe = Recipe(f"{method.names[0]} {word}".strip(), method.display, schedule_type, method.solver, spacing,
                            method.last, method.noise, method.adaptive)
            short = [key for key, meant in SHORT.items() if meant == word]
            words = [*spellings.get(word, ("", "automatic")), *short]
            found.update({_key(f"{name} {one}"): recipe for name in (*method.names, method.display) for one in words})
    return found


NAMES = tuple(method.names[0] for method in METHODS)
_RECIPES = _recipes(METHODS)
