"""Classifier-free guidance: how strong it is at each level, what it mixes, and what is corrected in the mixture."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from minisd.config import Prediction
from minisd.samplers.denoiser import ConditionalDenoiser, Conditioning, Denoiser, conditioned, to_output, to_x0
from minisd.samplers.schedule import Level


class Scale(Protocol):
    """The guidance scale at a level; 1 is none, and costs no more than none."""
    def __call__(self, level: Level, /) -> float: ...


class Correction(Protocol):
    """Repairs a guided x0, given the x0 of the condition alone, both [b, c, h, w], at x and its level."""
    def __call__(self, x0: Tensor, alone: Tensor, x: Tensor, level: Level, /) -> Tensor: ...


# ---------------------------------------------------------------- how strong
def place(schedule: Sequence[Level], level: Level) -> float:
    """Where a level lies in a schedule: 2.0 is its third level, 2.5 half way in sigma from there to the fourth."""
    sigmas = np.array([one.sigma for one in schedule])
    return float(np.interp(-level.sigma, -sigmas, np.arange(len(sigmas))))


def scale_at(scale: float, schedule: Sequence[Level], ramp: Sequence[float] = (),
             interval: tuple[float, float] | None = None) -> Scale:
    """A scale that may change on the way: `1 + (scale - 1) * share`, with a share of 0 outside the interval.

    `ramp` holds shares, spread evenly over the steps of the schedule and linear between them: (1, 0) falls to no
    guidance, as many as there are steps are one for each. `interval` is in sigma, above the first and up to the
    second (Kynkäänniemi et al., arXiv 2404.07724, eq. 6).
    """
    steps = len(schedule) - 1
    places = np.linspace(0, steps - 1, len(ramp)) if len(ramp) > 1 and steps > 1 else np.zeros(1)
    shares = np.array(ramp[:len(places)]) if len(ramp) else np.ones(1)

    def at(level: Level) -> float:
        if interval is not None and not interval[0] < level.sigma <= interval[1]:
            return 1.0
        share = float(np.interp(place(schedule, level), places, shares))
        return scale if share == 1 else 1 + (scale - 1) * share

    return at


# ---------------------------------------------------------------- what is mixed
def guided(denoise: ConditionalDenoiser, cond: Conditioning, negative: Conditioning, scale: Scale,
           corrections: Sequence[Correction] = ()) -> Denoiser:
    """Classifier-free guidance, `negative + scale * (cond - negative)`, in one doubled batch, negative first.

    Ho and Salimans, arXiv 2207.12598, eq. 6 with scale = 1 + w.  Mixing x0 is the same as mixing epsilon or v,
    since at a given x each is affine in the others.  Where the scale is 1 the negative half is skipped.
    """
    alone, both = conditioned(denoise, cond), negative.cat(cond)

    def denoise_guided(x: Tensor, level: Level) -> Tensor:
        strength = scale(level)
        if strength == 1:
            return alone(x, level)
        x0_negative, x0_cond = denoise(torch.cat([x, x]), level, both).chunk(2)    # [2b, …] -> 2 x [b, …]
        return _corrected(x0_negative + strength * (x0_cond - x0_negative), x0_cond, x, level, corrections)

    return denoise_guided


def guided_twice(denoise: ConditionalDenoiser, cond: Conditioning, negative: Conditioning, blank: Conditioning,
                 scale: Scale, picture_scale: float, corrections: Sequence[Correction] = ()) -> Denoiser:
    """Guidance by words and by a picture, each with a scale of its own, in one tripled batch.

    Instruct-pix2pix (Brooks et al., arXiv 2211.09800, eq. 3): `cond` has the words and the picture, `negative` the
    picture alone, `blank` neither.  What a scale of 1 leaves out of the sum is not computed.
    """
    if picture_scale == 1:
        return guided(denoise, cond, negative, scale, corrections)
    three = blank.cat(negative).cat(cond)

    def denoise_guided(x: Tensor, level: Level) -> Tensor:
        strength = scale(level)
        x0_blank, x0_negative, x0_cond = denoise(torch.cat([x, x, x]), level, three).chunk(3)
        mixed = x0_blank + strength * (x0_cond - x0_negative) + picture_scale * (x0_negative - x0_blank)
        return _corrected(mixed, x0_cond, x, level, corrections)

    return denoise_guided


def _corrected(x0: Tensor, alone: Tensor, x: Tensor, level: Level, corrections: Sequence[Correction]) -> Tensor:
    for correct in corrections:
        x0 = correct(x0, alone, x, level)
    return x0


def by_step(denoisers: Sequence[Denoiser], schedule: Sequence[Level], first: int) -> Denoiser:
    """A denoiser for each step of a walk from `schedule[first]`, chosen by the level it is asked at.

    A level belongs to the step on whose way it lies, and a border to the step that begins there: so a look ahead to
    the next level (Heun's, say) already has the next step's, and a solver that goes its own way has what fits.
    """
    def denoise(x: Tensor, level: Level) -> Tensor:
        step = int(place(schedule, level)) - first
        return denoisers[min(max(step, 0), len(denoisers) - 1)](x, level)

    return denoise


# ---------------------------------------------------------------- what is corrected
def rescaled(share: float, prediction: Prediction) -> Correction:
    """The network's output gets back the deviation that it has without guidance, by a share from 0 to 1.

    Lin et al., arXiv 2305.08891, eq. 14 to 16, against overexposure.  It is about the output that is predicted, be it
    epsilon, v or x0, and not about x0 always.
    """
    def correct(x0: Tensor, alone: Tensor, x: Tensor, level: Level) -> Tensor:
        mixed, wanted = to_output(prediction, x, x0, level), to_output(prediction, x, alone, level)
        ratio = _deviation(wanted) / _deviation(mixed)
        return to_x0(prediction, x, mixed * (share * ratio + (1 - share)), level)

    return correct


def _deviation(x: Tensor) -> Tensor:
    """Of each picture: [b, c, h, w] -> [b, 1, 1, 1]."""
    return x.std(dim=(1, 2, 3), keepdim=True)


def thresholded(share: float) -> Correction:
    """Dynamic thresholding (Saharia et al., arXiv 2205.11487, section 2.3): |x0| is cut at its quantile and scaled.

    There it is scaled back to 1, where pixels end.  Latents end nowhere, so here the bound is the same quantile of
    the x0 without guidance; where guidance has not gone beyond it, nothing changes.
    """
    def correct(x0: Tensor, alone: Tensor, x: Tensor, level: Level) -> Tensor:
        reached, bound = _quantile(x0, share), _quantile(alone, share)
        reached = torch.maximum(reached, bound)
        return torch.where(reached > bound, x0.clamp(-reached, reached) * (bound / reached), x0)

    return correct


def _quantile(x: Tensor, share: float) -> Tensor:
    """Of each picture's absolute values: [b, c, h, w] -> [b, 1, 1, 1]."""
    return x.abs().flatten(1).quantile(share, dim=1).view(-1, 1, 1, 1)
