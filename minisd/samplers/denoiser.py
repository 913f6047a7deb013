"""From a network to `denoise(x, level) -> x0`: the prediction it was trained for, its condition, its guidance.

The wrappers compose inside out: `denoiser(unet, "v")`, then `conditioned(...)` or `guided(...)`, is what a solver
calls.  Solvers never hear of guidance, masks or prediction types.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minisd.config import Prediction
from minisd.samplers.schedule import Level


@dataclass(frozen=True)
class Conditioning:
    """What a network is told about the pictures of a batch.  It computes in the dtype of `context`."""
    context: Tensor                       # [b, n, d]     text tokens for cross-attention
    label: Tensor | None = None           # [b, d]        joins the timestep embedding (SDXL's pooled text, sizes)
    concat: Tensor | None = None          # [b, c, h, w]  more input channels (inpainting, instruct-pix2pix)

    def cat(self, other: Conditioning) -> Conditioning:
        """Both batches as one, self first."""
        if self.context.shape[1:] != other.context.shape[1:]:
            raise ValueError(f"contexts of {list(self.context.shape)} and {list(other.context.shape)}: "
                             "pad both to the same number of tokens")
        return Conditioning(torch.cat([self.context, other.context]),
                            _cat("label", self.label, other.label),
                            _cat("concat", self.concat, other.concat))


def _cat(name: str, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise ValueError(f"one condition has a {name}, the other has none: give it to both or to neither")
    return torch.cat([a, b])


class Network(Protocol):
    """A UNet's forward: x [b, c, h, w] in the variance-preserving scale, t [b] -> prediction [b, c, h, w]."""
    def __call__(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None, /) -> Tensor: ...


class ConditionalDenoiser(Protocol):
    """x [b, c, h, w] at a level, under a condition -> the clean x0 the network believes in, same shape."""
    def __call__(self, x: Tensor, level: Level, cond: Conditioning, /) -> Tensor: ...


class Denoiser(Protocol):
    """x [b, c, h, w] at a level -> x0, same shape: all that a solver knows of a network."""
    def __call__(self, x: Tensor, level: Level, /) -> Tensor: ...


# x and the network's output -> x0, from x = x0 + sigma * epsilon and v = (epsilon - sigma * x0) / scale.
_X0: dict[Prediction, Callable[[Tensor, Tensor, Level], Tensor]] = {
    "epsilon": lambda x, out, level: x - level.sigma * out,
    "v": lambda x, out, level: x / level.scale ** 2 - out * (level.sigma / level.scale),
    "x0": lambda x, out, level: out,
}


def denoiser(unet: Network, prediction: Prediction = "epsilon") -> ConditionalDenoiser:
    """A network that predicts epsilon, v (Salimans and Ho, arXiv 2202.00512, appendix D) or x0, as a denoiser.

    x keeps its own dtype, and float32 is meant: at sigma 14, half precision is coarser than a picture's detail.
    `unet` may be any callable, so a ControlNet enters as a closure.
    """
    to_x0 = _X0[prediction]

    def denoise(x: Tensor, level: Level, cond: Conditioning) -> Tensor:
        scaled = (x / level.scale).to(cond.context.dtype)
        if cond.concat is not None:
            scaled = torch.cat([scaled, cond.concat], dim=1)       # joined after scaling: it carries no noise
        t = torch.full((x.shape[0],), level.t, dtype=torch.float32, device=x.device)
        return to_x0(x, unet(scaled, t, cond.context, cond.label).to(x.dtype), level)

    return denoise


def conditioned(denoise: ConditionalDenoiser, cond: Conditioning) -> Denoiser:
    """One condition and no guidance: each call has the batch's own size."""
    return lambda x, level: denoise(x, level, cond)


def guided(denoise: ConditionalDenoiser, cond: Conditioning, negative: Conditioning,
           scale: float) -> Denoiser:
    """Classifier-free guidance, `negative + scale * (cond - negative)`, in one doubled batch, negative first.

    Ho and Salimans, arXiv 2207.12598, eq. 6 with scale = 1 + w.  Mixing x0 is the same as mixing epsilon or v,
    since at a given x each is affine in the others.  Scale 1 skips the negative half.
    """
    if scale == 1:
        return conditioned(denoise, cond)
    both = negative.cat(cond)

    def denoise_guided(x: Tensor, level: Level) -> Tensor:
        x0_negative, x0_cond = denoise(torch.cat([x, x]), level, both).chunk(2)    # [2b, …] -> 2 x [b, …]
        return x0_negative + scale * (x0_cond - x0_negative)

    return denoise_guided
