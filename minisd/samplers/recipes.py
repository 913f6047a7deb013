"""The names people know, as data: a solver, the spacing it walks on, and where it ends.

Every method can be put on any spacing by naming it: "euler", "euler karras", "ddim trailing".  Case, spaces and
hyphens do not matter, and A1111's and k-diffusion's spellings are understood: "DPM++ 2M Karras", "dpmpp_2m".
"""
from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minisd.errors import USAGE, MinisdError
from minisd.samplers.loop import Solver
from minisd.samplers.multistep import PLMS, DPMMultistep
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import (
    End,
    NoiseTable,
    Schedule,
    Spacing,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
    trailing,
)


class Method(NamedTuple):
    """A row of the table below; `display` is the name in A1111's list, or the nearest to one."""
    names: tuple[str, ...]             # the first is ours
    display: str
    solver: Solver
    spacing: str                       # used unless the name says another
    last: End = "clean"


METHODS = (
    Method(("euler",), "Euler", Euler(), "linspace"),
    Method(("euler a", "euler ancestral"), "Euler a", Euler(eta=1.0), "linspace"),
    # Stable Diffusion's DDIM and PNDM end at the first trained level (set_alpha_to_one=false), not at sigma 0.
    Method(("ddim",), "DDIM", Euler(), "leading", "first"),
    Method(("ddpm",), "DDPM", Euler(eta=1.0), "leading"),
    Method(("pndm", "plms"), "PLMS", PLMS(), "leading", "first"),
    # DPM-Solver predicts noise, of which there is none at sigma 0.
    Method(("dpm-solver", "dpm-solver 2m"), "DPM-Solver", DPMMultistep(2, "noise"), "rounded", "first"),
    Method(("dpm-solver 3m",), "DPM-Solver 3M", DPMMultistep(3, "noise", curvature="exact"), "rounded", "first"),
    Method(("dpm++2m", "dpm-solver++"), "DPM++ 2M", DPMMultistep(2), "linspace"),
    Method(("dpm++2m sde",), "DPM++ 2M SDE", DPMMultistep(2, eta=1.0), "linspace"),
    Method(("dpm++2m sde heun",), "DPM++ 2M SDE Heun", DPMMultistep(2, eta=1.0, slope="heun"), "linspace"),
    Method(("dpm++3m",), "DPM++ 3M", DPMMultistep(3, curvature="exact"), "linspace"),
    Method(("dpm++3m sde",), "DPM++ 3M SDE", DPMMultistep(3, eta=1.0, slope="heun", settle=False), "linspace"),
)

# The word in a name -> the spacing, and its schedule type in A1111's metadata (the last two have none there).
SPACINGS: dict[str, tuple[Spacing, str]] = {
    "linspace": (linspace, "Uniform"),
    "karras": (karras, "Karras"),
    "exponential": (exponential, "Exponential"),
    "leading": (leading, "DDIM"),
    "trailing": (trailing, "Trailing"),
    "rounded": (linspace_rounded, "Rounded"),
}


@dataclass(frozen=True)
class Recipe:
    """A solver and the schedule it walks; `display` and `schedule_type` are for a picture's metadata."""
    name: str
    display: str
    schedule_type: str
    solver: Solver
    spacing: Spacing
    last: End

    def schedule(self, table: NoiseTable, n: int) -> Schedule:
        """n + 1 levels, 1 <= n <= table.steps."""
        if not 1 <= n <= table.steps:
            raise MinisdError(f"{n} steps", where=f"sampler {self.name}",
                              why=f"the network was trained on {table.steps} noise levels",
                              remedy=f"ask for 1 to {table.steps} steps", code=USAGE)
        return self.spacing(table, n, last=self.last)

    def calls(self, table: NoiseTable, n: int) -> int:
        """Network calls for n steps (PNDM makes n + 1)."""
        return self.solver.calls(self.schedule(table, n))


def sampler(name: str) -> Recipe:
    """The recipe of a name; an unknown name is an error that lists the nearest."""
    key = _key(name)
    if key in _RECIPES:
        return _RECIPES[key]
    near = difflib.get_close_matches(key, _RECIPES, n=5, cutoff=0.5)
    raise MinisdError(f"no sampler is called {name!r}", where="--sampler",
                      why="nearest: " + ", ".join(dict.fromkeys(_RECIPES[k].name for k in near)) if near else "",
                      remedy=f"one of {', '.join(NAMES)}; a spacing may follow: {', '.join(SPACINGS)}", code=USAGE)


def _key(name: str) -> str:
    """A name without what people spell differently: DPM++ 2M, dpmpp_2m and dpm++2m are one."""
    return "".join(c for c in name.lower() if c.isalnum() or c == "+").replace("dpmpp", "dpm++")


def _recipes(methods: Sequence[Method]) -> dict[str, Recipe]:
    """Every spelling of every method, with and without every spacing."""
    found: dict[str, Recipe] = {}
    for names, display, solver, default, last in methods:
        for word in ("", *SPACINGS):
            spacing, schedule_type = SPACINGS[word or default]
            recipe = Recipe(f"{names[0]} {word}".strip(), display, schedule_type, solver, spacing, last)
            found.update({_key(f"{name} {word}"): recipe for name in names})
    return found


NAMES = tuple(method.names[0] for method in METHODS)
_RECIPES = _recipes(METHODS)
