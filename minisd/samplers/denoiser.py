"""From a network to `denoise(x, level) -> x0`: the prediction it was trained for, its condition, what is known.

The wrappers compose inside out: `denoiser(unet, "v")`, then `conditioned(...)` or `guidance.guided(...)`, then perhaps
`inpainting(...)`, is what a solver calls.  Solvers never hear of guidance, masks or prediction types.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def rows(self, at: Sequence[int]) -> Conditioning:
        """Some of the batch, in this order; a row may come again."""
        rows = list(at)
        return Conditioning(self.context[rows], None if self.label is None else self.label[rows],
                            None if self.concat is None else self.concat[rows])


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
# And back: x and x0 -> the output.
_OUTPUT: dict[Prediction, Callable[[Tensor, Tensor, Level], Tensor]] = {
    "epsilon": lambda x, x0, level: (x - x0) / level.sigma,
    "v": lambda x, x0, level: (x / level.scale ** 2 - x0) * (level.scale / level.sigma),
    "x0": lambda x, x0, level: x0,
}


def to_x0(prediction: Prediction, x: Tensor, out: Tensor, level: Level) -> Tensor:
    """What the network's output says of the clean picture."""
    return _X0[prediction](x, out, level)


def to_output(prediction: Prediction, x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The output that says this x0; at sigma 0 neither epsilon nor v does."""
    return _OUTPUT[prediction](x, x0, level)


def denoiser(unet: Network, prediction: Prediction = "epsilon") -> ConditionalDenoiser:
    """A network that predicts epsilon, v (Salimans and Ho, arXiv 2202.00512, appendix D) or x0, as a denoiser.

    x keeps its own dtype, and float32 is meant: at sigma 14, half precision is coarser than a picture's detail.
    `unet` may be any callable, so a ControlNet enters as a closure.
    """
    def denoise(x: Tensor, level: Level, cond: Conditioning) -> Tensor:
        scaled = (x / level.scale).to(cond.context.dtype)
        if cond.concat is not None:
            scaled = torch.cat([scaled, cond.concat], dim=1)       # joined after scaling: it carries no noise
        t = torch.full((x.shape[0],), level.t, dtype=torch.float32, device=x.device)
        return to_x0(prediction, x, unet(scaled, t, cond.context, cond.label).to(x.dtype), level)

    return denoise


def conditioned(denoise: ConditionalDenoiser, cond: Conditioning) -> Denoiser:
    """One condition and no guidance: each call has the batch's own size."""
    return lambda x, level: denoise(x, level, cond)


def inpainting(denoise: Denoiser, known: Tensor, mask: Tensor, noise: Tensor) -> Denoiser:
    """Keeps the picture where the mask is False: there x is `known + sigma * noise`, and x0 is `known`.

    `known` and `noise` are [b, c, h, w], `mask` is boolean [1, 1, h, w].  That is Blended Latent Diffusion (Avrahami
    et al., arXiv 2206.02779, section 3) at every call of the network, so it serves solvers of every kind: what a
    solver makes of the known area is thrown away, and no pixel of it enters the rest but through the network.
    """
    def denoise_inside(x: Tensor, level: Level) -> Tensor:
        x = torch.where(mask, x, known + level.sigma * noise)
        return torch.where(mask, denoise(x, level), known)

    return denoise_inside
