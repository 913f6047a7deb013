"""What a denoiser is asked: noise a latent to a random level, name the target, weigh the error.

Here x is the variance-preserving one of DDPM (arXiv 2006.11239): x_t = a x0 + b noise with a^2 + b^2 = 1, which is
what the network is given; in the samplers' terms a = 1 / sqrt(1 + sigma^2) and b = sigma * a.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.config import Prediction
from minisd.samplers.schedule import NoiseTable


class Question(NamedTuple):
    x: Tensor                                     # [b, c, h, w] the noised latents
    t: Tensor                                     # [b] timesteps
    target: Tensor                                # [b, c, h, w] what the network should say
    weight: Tensor                                # [b] weight of each sample's squared error


@dataclass(frozen=True)
class Objective:
    """Noise levels, prediction type and weighting of the denoising loss."""

    table: NoiseTable
    prediction: Prediction = "epsilon"
    min_snr: float | None = None
    shift: float = 1.0

    def timesteps(self, u: Tensor) -> Tensor:
        """Uniform draws u in [0, 1) to timesteps [b]; shift > 1 prefers the noisy ones (arXiv 2403.03206, eq. 23)."""
        u = self.shift * u / (1 + (self.shift - 1) * u)
        return (u * self.table.steps).long().clamp(max=self.table.steps - 1)

    def question(self, x0: Tensor, noise: Tensor, t: Tensor) -> Question:
        """Latents [b, c, h, w], noise of the same shape, timesteps [b] -> Question."""
        sigma = torch.tensor(self.table.sigmas, dtype=torch.float32, device=x0.device)[t]
        a, b = 1 / (1 + sigma ** 2).sqrt(), sigma / (1 + sigma ** 2).sqrt()
        wide_a, wide_b = a[:, None, None, None], b[:, None, None, None]
        target = {"epsilon": lambda: noise, "x0": lambda: x0, "v": lambda: wide_a * noise - wide_b * x0}
        return Question(wide_a * x0 + wide_b * noise, t, target[self.prediction](), self.weight(sigma))

    def weight(self, sigma: Tensor) -> Tensor:
        """Min-SNR (arXiv 2303.09556): min(SNR, gamma) on the error of x0, written as weight of the predicted kind."""
        if self.min_snr is None:
            return torch.ones_like(sigma)
        snr = sigma ** -2
        per_prediction = {"epsilon": snr, "v": snr + 1, "x0": torch.ones_like(snr)}
        return snr.clamp(max=self.min_snr) / per_prediction[self.prediction]


def error(out: Tensor, target: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weighted mean squared error, reduced in float32: a scalar.

    A mask [b, 1, h, w] says how much each place counts; its scale does not, so that a small subject counts as a whole.
    """
    squared = (out.float() - target.float()).square()
    if mask is not None:
        squared = squared * (mask / mask.mean(dim=(1, 2, 3), keepdim=True))
    return (weight * squared.mean(dim=(1, 2, 3))).mean()
