"""All that decides a picture, checked before anything is loaded: this file and what it imports need no torch."""

import math
from dataclasses import dataclass

from minisd.errors import USAGE, MinisdError
from minisd.samplers.recipes import sampler

SIDES = (64, 2048)                                # pixels; both must be multiples of 8
STEPS = (1, 1000)
GUIDANCE = (0.0, 100.0)
SIGMAS = (0.0, 1e6)
SEEDS = 2 ** 64


def in_range(option: str, value: float, low: float, high: float) -> None:
    """Refuses what lies outside, and what is not a number."""
    if not (math.isfinite(value) and low <= value <= high):
        shown = f"2^64 - {SEEDS - high:.0f}" if high > SEEDS // 2 else f"{high:g}"
        raise MinisdError(f"--{option} {value} is out of range", remedy=f"give {low:g} to {shown}", code=USAGE)


def check_side(option: str, pixels: int) -> None:
    """Sizes are never rounded to what fits: the nearest that do are named instead."""
    in_range(option, pixels, *SIDES)
    if pixels % 8:
        below = pixels // 8 * 8
        raise MinisdError(f"--{option} {pixels} is not a multiple of 8", remedy=f"give {below} or {below + 8}",
                          code=USAGE)


@dataclass(frozen=True)
class Defaults:
    """What a model likes best, for whatever the user leaves open; `config.json` may state its own."""

    steps: int = 20
    guidance: float = 7.5
    sampler: str = "dpm++2m karras"


STANDARD = Defaults()                             # of a model that states none: Stable Diffusion's habits


@dataclass(frozen=True)
class Guide:
    """How guidance is applied, beside its scale; as it stands, plainly."""

    ramp: tuple[float, ...] = ()                  # shares of it, spread evenly over the steps; () = whole all the way
    interval: tuple[float, float] | None = None   # in sigma: guided above the first, up to the second
    rescale: float = 0.0                          # share of the deviation that is given back (arXiv 2305.08891)
    threshold: float | None = None                # quantile at which x0 is cut, such as 0.995 (arXiv 2205.11487)

    def __post_init__(self) -> None:
        if len(self.ramp) > STEPS[1]:
            raise MinisdError(f"--cfg-ramp of {len(self.ramp)} shares", remedy=f"give at most {STEPS[1]}", code=USAGE)
        for share in self.ramp:
            in_range("cfg-ramp", share, 0, 10)
        for sigma in self.interval or ():
            in_range("cfg-interval", sigma, *SIGMAS)
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise MinisdError(f"--cfg-interval {self.interval[0]:g},{self.interval[1]:g} is empty",
                              why="it is in sigma: above the first, up to the second", remedy="give the smaller first",
                              code=USAGE)
        in_range("cfg-rescale", self.rescale, 0, 1)
        if self.threshold is not None:
            in_range("threshold", self.threshold, 0.5, 1)


PLAIN = Guide()


@dataclass(frozen=True)
class Drawing:
    """One picture to be drawn. Values out of range are errors that name the option and what it allows."""

    prompt: str
    negative: str
    steps: int
    guidance: float                               # 1 = none, and the negative prompt goes unread
    sampler: str
    seed: int
    width: int
    height: int
    guide: Guide = PLAIN

    def __post_init__(self) -> None:
        in_range("steps", self.steps, *STEPS)
        in_range("cfg", self.guidance, *GUIDANCE)
        in_range("seed", self.seed, 0, SEEDS - 1)
        check_side("width", self.width)
        check_side("height", self.height)
        sampler(self.sampler)
