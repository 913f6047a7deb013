"""Noise levels: the table a network was trained on, and the spacings that choose n of its levels to walk down.

A spacing is a plain function `(table, n) -> [Level] * (n + 1)`, noisiest first.  A step and its successor are
neighbours in that list; nothing is ever computed as "t - steps // n", which is wrong for most spacings.
"""
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Level(NamedTuple):
    """One noise level: sigma in `x = x0 + sigma * noise`, and the timestep (maybe fractional) told to the network.

    A pair, because the references disagree on how one follows from the other: a spacing decides, and says both.
    """
    sigma: float
    t: float

    @property
    def scale(self) -> float:
        """Standard deviation of x at this level for data of unit variance; x / scale is the network's input.

        It is also the way to the variance-preserving x of DDPM (`x / scale`), and `scale * noise` is pure noise.
        """
        return math.sqrt(1.0 + self.sigma ** 2)


CLEAN = Level(0.0, 0.0)
Schedule = list[Level]                       # n + 1 levels, strictly falling
End = Literal["clean", "first"]              # the last level: sigma 0, or the first level the network was trained on
Betas = Literal["scaled_linear", "linear", "cosine"]
NO_SIGNAL = 2.0 ** -24                       # alpha-bar of the noisiest level where the table says zero_snr


@dataclass(frozen=True)
class NoiseTable:
    """The noise levels a network was trained on, sigma[t] for t = 0 … steps - 1; the defaults are Stable Diffusion's.

    `scaled_linear` is linear in sqrt(beta) (latent diffusion), `linear` is DDPM's, `cosine` is Nichol and Dhariwal's
    (arXiv 2102.09672, eq. 17, beta at most 0.999), which has no use for beta_start and beta_end.

    `zero_snr` rescales them so that the noisiest level holds no signal (Lin et al., arXiv 2305.08891, algorithm 1).
    Its sigma would be infinite; it is 4096, from alpha-bar 2^-24, as in diffusers' Euler and DPM-Solver: finite for
    every solver, coarse enough for float32, and the signal that is left, 1/4096, is less than a picture's last bit.
    At that level epsilon says nothing of the picture: the network must predict v or x0 (ModelConfig sees to it).
    """
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    betas: Betas = "scaled_linear"
    zero_snr: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(f"betas from {self.beta_start} to {self.beta_end}: need 0 < beta_start <= beta_end < 1")
        if self.steps < 1:
            raise ValueError(f"{self.steps} trained noise levels: need at least 1")
        if self.betas not in ("scaled_linear", "linear", "cosine"):
            raise ValueError(f"betas {self.betas!r}: one of 'scaled_linear', 'linear', 'cosine'")
        if self.zero_snr and self.steps < 2:
            raise ValueError("zero_snr with 1 noise level: that level would hold no picture; need at least 2")

    @property
    def alphas_cumprod(self) -> Floats:
        """DDPM's alpha-bar of every trained level, [steps] float64, read-only.  It is 1 / (1 + sigma^2)."""
        return _alphas_cumprod(self)

    @property
    def sigmas(self) -> Floats:
        """Sigma of every trained level, [steps] float64, rising, read-only."""
        return _sigmas(self)

    def at_t(self, t: float) -> Level:
        """Level of a timestep; between two trained ones sigma is interpolated linearly (as diffusers does)."""
        return Level(float(np.interp(t, np.arange(self.steps), self.sigmas)), float(t))

    def between(self, t: float) -> Level:
        """Level of a timestep; between two trained ones log sigma is interpolated, which is `at_sigma` backwards."""
        return Level(float(np.exp(np.interp(t, np.arange(self.steps), np.log(self.sigmas)))), float(t))

    def at_sigma(self, sigma: float) -> Level:
        """Level of a sigma; between two trained ones t is interpolated in log sigma (as k-diffusion does)."""
        if sigma == 0:
            return CLEAN
        t = np.interp(math.log(sigma), np.log(self.sigmas), np.arange(self.steps))
        return Level(float(sigma), float(t))


@lru_cache(maxsize=32)
def _alphas_cumprod(table: NoiseTable) -> Floats:
    result = np.cumprod(1.0 - _betas(table), dtype=np.float64)
    if table.zero_snr:
        signal = np.sqrt(result)
        result = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
        result[-1] = NO_SIGNAL
    result.setflags(write=False)
    return result


@lru_cache(maxsize=32)
def _sigmas(table: NoiseTable) -> Floats:
    alphas_cumprod = table.alphas_cumprod
    result: Floats = np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod)
    result.setflags(write=False)
    return result


def _betas(table: NoiseTable) -> Floats:
    if table.betas == "linear":
        return np.linspace(table.beta_start, table.beta_end, table.steps)
    if table.betas == "scaled_linear":
        return np.linspace(table.beta_start ** 0.5, table.beta_end ** 0.5, table.steps) ** 2
    alpha_bar: Floats = np.cos((np.arange(table.steps + 1) / table.steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


# ---------------------------------------------------------------- spacings
class Spacing(Protocol):
    """Chooses n levels of a table and ends them; n is 1 … table.steps."""
    def __call__(self, table: NoiseTable, n: int, *, last: End = "clean") -> Schedule: ...


def leading(table: NoiseTable, n: int, *, last: End = "clean", offset: int = 1, spare: int = 0) -> Schedule:
    """Whole multiples of steps // n, plus offset: what DDIM and PNDM use in Stable Diffusion.

    It never reaches the noisiest level: see `trailing`.  `spare` points more are placed and the cleanest `spare`
    dropped (diffusers' DPM-Solver: 1).  With n = steps there is no room for an offset.  A single point would be
    t = 1, where a walk that begins with pure noise ends with it: it is the noisiest level instead.
    """
    _check(table, n)
    spare = min(spare, table.steps - n)
    ratio = table.steps // (n + spare)
    top = (n + spare - 1) * ratio
    offset = min(offset, table.steps - 1 - top) if top else table.steps - 1
    return _ended(table, (table.at_t(top - i * ratio + offset) for i in range(n)), last)


def linspace(table: NoiseTable, n: int, *, last: End = "clean", rounded: bool = False, spare: int = 0) -> Schedule:
    """Evenly from the noisiest timestep to the cleanest (k-diffusion's and Euler's); whole timesteps if `rounded`.

    `spare` points more are placed and the cleanest `spare` dropped, as far as there are trained levels for them.
    """
    _check(table, n)
    top = table.steps - 1
    count = min(n + spare, table.steps)
    # Counted upwards and turned round, so that halves round as they do in the references; one point is the noisiest.
    points = np.linspace(0, top, count)[::-1][:n] if count > 1 else np.array([top])
    return _ended(table, (table.at_t(t) for t in (points.round() if rounded else points)), last)


def linspace_rounded(table: NoiseTable, n: int, *, last: End = "clean") -> Schedule:
    """DPM-Solver's: n + 1 points rounded to trained timesteps, of which the cleanest is dropped."""
    return linspace(table, n, last=last, rounded=True, spare=1)


def trailing(table: NoiseTable, n: int, *, last: End = "clean") -> Schedule:
    """Counted down from the noisiest timestep (Lin et al., arXiv 2305.08891, table 2): right for very few steps."""
    _check(table, n)
    # Halves round as in the references; their arange sometimes yields a point too many (n = 61: timestep -1).
    points = np.arange(table.steps, 0, -table.steps / n)[:n].round() - 1
    return _ended(table, (table.at_t(t) for t in points), last)


def karras(table: NoiseTable, n: int, *, last: End = "clean", rho: float = 7.0, rounded: bool = False) -> Schedule:
    """Evenly in sigma^(1 / rho) (Karras et al., arXiv 2206.00364, eq. 5): dense near the picture.

    `rounded` tells the network whole timesteps, as diffusers' DPM-Solver does; sigma stays exact.
    """
    _check(table, n)
    low, high = table.sigmas[0] ** (1 / rho), table.sigmas[-1] ** (1 / rho)
    levels = [table.at_sigma((high + f * (low - high)) ** rho) for f in np.linspace(0, 1, n)]
    if rounded:
        levels = [level._replace(t=float(round(level.t))) for level in levels]
    return _ended(table, levels, last)


def polyexponential(table: NoiseTable, n: int, *, last: End = "clean", rho: float = 1.0) -> Schedule:
    """Log sigma falls as a power of what is left of the way (k-diffusion); rho > 1 is denser near the picture."""
    _check(table, n)
    if rho <= 0:
        raise ValueError(f"rho is {rho}: need more than 0")
    low, high = np.log(table.sigmas[[0, -1]])
    return _ended(table, (table.at_sigma(sigma) for sigma in np.exp(low + np.linspace(1, 0, n) ** rho * (high - low))),
                  last)


def exponential(table: NoiseTable, n: int, *, last: End = "clean") -> Schedule:
    """Evenly in log sigma."""
    return polyexponential(table, n, last=last)


def sgm_uniform(table: NoiseTable, n: int, *, last: End = "clean") -> Schedule:
    """n + 1 points evenly in t, of which the cleanest is dropped, not rounded: A1111's and ComfyUI's "SGM uniform"."""
    _check(table, n)
    return _ended(table, (table.between(t) for t in np.linspace(table.steps - 1, 0, n + 1)[:-1]), last)


def simple(table: NoiseTable, n: int, *, last: End = "clean") -> Schedule:
    """Every (steps / n)-th trained level, counted down from the noisiest and cut to whole ones: ComfyUI's "simple"."""
    _check(table, n)
    return _ended(table, (table.at_t(table.steps - 1 - int(i * (table.steps / n))) for i in range(n)), last)


def beta(table: NoiseTable, n: int, *, last: End = "clean", a: float = 0.6, b: float = 0.6,
         of: Literal["sigma", "t"] = "sigma") -> Schedule:
    """Even quantiles of a Beta distribution: dense at both ends (Lee et al., arXiv 2407.12173).

    The paper and ComfyUI take them of t, n of n + 1 so that the cleanest is left out; diffusers and A1111 of sigma.
    ComfyUI also rounds t, and walks fewer steps where two become one: here t stays as it is.
    """
    _check(table, n)
    if of == "t":
        share = beta_quantile(1 - np.arange(n) / n, a, b)
        return _ended(table, (table.at_t(t) for t in share * (table.steps - 1)), last)
    low, high = table.sigmas[[0, -1]]
    return _ended(table, (table.at_sigma(low + f * (high - low)) for f in beta_quantile(np.linspace(1, 0, n), a, b)),
                  last)


def beta_quantile(p: Floats, a: float, b: float) -> Floats:
    """x with P(X <= x) = p for X ~ Beta(a, b), 0 < a, b <= 1, to 1e-12: p and the result are [n] in [0, 1].

    Up to the median of Beta(a, b), and from there on mirrored, P = x^a / (a B(a, b)) * 2F1(a, 1 - b; a + 1; x)
    (DLMF 8.17.7) is nearly a line in u = x^a, and convex: Newton's method comes down to its root from the right.
    """
    if not (0 < a <= 1 and 0 < b <= 1):
        raise ValueError(f"a Beta distribution of {a} and {b}: this spacing takes 0 < a, b <= 1")
    half = float(_beta_share(np.array([0.5 ** a]), a, b)[0])
    lower = _beta_below(np.minimum(p, half), a, b)
    upper = 1 - _beta_below(np.minimum(1 - p, 1 - half), b, a)
    return np.where(p <= half, lower, upper)


def _beta_below(p: Floats, a: float, b: float) -> Floats:
    """The quantiles of p <= P(X <= 1/2)."""
    norm = a * math.gamma(a) * math.gamma(b) / math.gamma(a + b)
    u = np.minimum(p * norm, 0.75 ** a)
    for _ in range(8):
        slope = (1 - u ** (1 / a)) ** (b - 1) / norm
        u = np.maximum(u - (_beta_share(u, a, b) - p) / slope, 0)
    return u ** (1 / a)


def _beta_share(u: Floats, a: float, b: float) -> Floats:
    """P(X <= u^(1 / a)) by its series; at 3/4, the worst that is asked for, 120 terms leave 1e-15."""
    k, x = np.arange(1, 120), u ** (1 / a)
    terms = np.cumprod(x[:, None] * ((k - b) / k), axis=1)             # [n, 119]
    norm = a * math.gamma(a) * math.gamma(b) / math.gamma(a + b)
    return u / norm * (1 + terms @ (a / (a + k)))


def _check(table: NoiseTable, n: int) -> None:
    if not 1 <= n <= table.steps:
        raise ValueError(f"{n} steps over {table.steps} trained noise levels: need 1 to {table.steps}")


def _ended(table: NoiseTable, levels: Iterable[Level], last: End) -> Schedule:
    """Append the end.  Where the spacing itself has come down to the first trained level, only CLEAN is below it."""
    levels = list(levels)
    first = table.at_t(0)
    if any(now.sigma <= next.sigma for now, next in pairwise(levels)):
        raise ValueError(f"two of {len(levels)} levels fall together: give fewer steps, or a rho nearer to 1")
    above = levels[-1].sigma > first.sigma * (1 + 1e-9)          # Karras returns to it but for rounding
    return [*levels, first if last == "first" and above else CLEAN]
