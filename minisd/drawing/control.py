"""Control over a picture beyond its prompt: guidance, a beginning, a mask, a second walk, shortcuts. No torch."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from minisd.drawing.ranges import SIDES, STEPS, check_sha256, in_range
from minisd.errors import USAGE, MinisdError

SIGMAS = (0.0, 1e6)
MERGED = (0.0, 0.75)                              # of every four tokens one stays
FEATHER, PADDING, UPSCALE = (0, 256), (0, 2048), (1.0, 8.0)
Upscaler = Literal["latent", "lanczos"]


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
class Fresh:
    """Fresh noise on the way, of samplers that take some; as it stands, as much as the method has by itself."""

    eta: float | None = None                      # 0 = none, 1 = as much as DDPM adds; None = the method's own
    churn: float = 0.0                            # of the whole walk (arXiv 2206.00364, algorithm 2), and for that:
    low: float = 0.0                              # the sigmas between which it is added; None = up to the highest
    high: float | None = None
    noise: float = 1.0                            # its deviation

    def __post_init__(self) -> None:
        if self.eta is not None:
            in_range("eta", self.eta, 0, 10)
        in_range("churn", self.churn, 0, 1000)
        in_range("churn-low", self.low, *SIGMAS)
        if self.high is not None:
            in_range("churn-high", self.high, self.low, SIGMAS[1])
        in_range("churn-noise", self.noise, 0, 10)
        if not self.churn and (self.low, self.high, self.noise) != (0.0, None, 1.0):
            raise MinisdError("--churn-low, --churn-high or --churn-noise, but no --churn",
                              remedy="say how much noise by --churn, or leave them out", code=USAGE)


STILL = Fresh()


@dataclass(frozen=True)
class Start:
    """The picture that a drawing begins from, by the fingerprint of its pixels, and how far it goes."""

    sha256: str
    strength: float = 0.75                        # share of the steps: 1 is a fresh start, 0 only goes through the VAE

    def __post_init__(self) -> None:
        check_sha256(self.sha256)
        in_range("strength", self.strength, 0, 1)


@dataclass(frozen=True)
class Mask:
    """What is drawn anew, where the picture with this fingerprint is white, and how it is joined to the rest."""

    sha256: str
    feather: int = 0                              # pixels around it over which the new fades into the old
    padding: int | None = None                    # pixels of context, where the area alone is drawn; None = all is

    def __post_init__(self) -> None:
        check_sha256(self.sha256)
        in_range("feather", self.feather, *FEATHER)
        if self.padding is not None:
            in_range("only-masked", self.padding, *PADDING)


@dataclass(frozen=True)
class Hires:
    """A second walk: what was drawn is enlarged, and drawn further from there."""

    upscale: float = 2.0
    strength: float = 0.7
    steps: int | None = None                      # of which the share `strength` is walked; None = as many as before
    upscaler: Upscaler = "latent"                 # or the picture's pixels, by "lanczos"

    def __post_init__(self) -> None:
        in_range("hires-upscale", self.upscale, *UPSCALE)
        in_range("hires-strength", self.strength, 0, 1)
        if self.steps is not None:
            in_range("hires-steps", self.steps, *STEPS)
        if self.upscaler not in get_args(Upscaler):
            raise MinisdError(f"--hires-upscaler {self.upscaler!r}", remedy=f"give {' or '.join(get_args(Upscaler))}",
                              code=USAGE)


@dataclass(frozen=True)
class Shortcuts:
    """Ways to nearly the same picture in less time; as it stands, none is taken."""

    reuse: int = 1                                # of so many calls of the UNet one is whole (arXiv 2312.00858)
    merge: float = 0.0                            # share of tokens merged before self-attention (arXiv 2303.17604)

    def __post_init__(self) -> None:
        in_range("reuse-features", self.reuse, *STEPS)
        in_range("merge-tokens", self.merge, *MERGED)


EXACT = Shortcuts()


class Walk(NamedTuple):
    """One way down a schedule of `steps`, of which the first `skipped` are left out."""

    width: int
    height: int
    steps: int
    skipped: int


def skipped(option: str, steps: int, strength: float) -> int:
    """How many of the steps a strength leaves out; one that would leave out all, and is not 0, is refused."""
    taken = math.floor(steps * strength + 1e-9)   # 50 * 0.58 is 28.999999999999996 to the machine
    if strength and not taken:
        enough = math.ceil(1000 / steps) / 1000
        raise MinisdError(f"--{option} {strength:g} of {steps} steps is less than one step",
                          remedy=f"give at least {math.ceil(1 / strength)} steps, or {enough:g}", code=USAGE)
    return steps - taken


def larger(option: str, pixels: int, upscale: float) -> int:
    """A side after hires, which must come out as a multiple of 8; 1.3333 may stand for 4 / 3."""
    side = pixels * upscale
    if abs(side - round(side)) > 0.05 or round(side) % 8 or round(side) > SIDES[1]:
        best = min(max(round(side / 8) * 8, pixels), SIDES[1])
        raise MinisdError(f"--hires-upscale {upscale:g} of {option} {pixels} makes {side:g} pixels",
                          why=f"sides are multiples of 8 up to {SIDES[1]}",
                          remedy=f"give {best / pixels:.6g}, or another --{option}", code=USAGE)
    return round(side)
