"""Held-out questions for denoisers: the same noised latents under the same words, for whoever is asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisd.pipeline import StableDiffusion
from minisd.sites import NO_SITES, Sites
from minisd.train.captions import captions_of
from minisd.train.config import DataConfig, Preview
from minisd.train.data import unseen
from minisd.train.draws import Draws
from minisd.train.encoded import Encoded, Words
from minisd.train.imagined import Imagined
from minisd.train.objective import Objective
from minisd.train.stages import listing
from minisd.unet import UNet

BANDS, TOGETHER = 4, 8                            # bands of timesteps; samples asked at a time


@dataclass(frozen=True)
class Questions:
    """Samples [n, ...] whose timesteps are spread evenly over all, so that each band of them has its share."""

    x: Tensor                                     # noised latents
    t: Tensor                                     # [n]
    target: Tensor                                # what a perfect answer would be
    hidden: Tensor
    label: Tensor | None
    steps: int
    listing: str                                  # names the rows that they were made of

    @property
    def bands(self) -> Tensor:
        """[n], 0 being the least noisy."""
        return self.t * BANDS // self.steps

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        for start in range(0, len(self.t), TOGETHER):
            part = slice(start, start + TOGETHER)
            yield self.x[part], self.t[part], self.hidden[part], None if self.label is None else self.label[part]

    @torch.no_grad()
    def ask(self, unet: UNet) -> Tensor:
        """All answers: [n, c, h, w]."""
        return torch.cat([unet(*question) for question in self.batches()])

    @torch.no_grad()
    def features(self, unet: UNet, sites: tuple[str, ...]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Answers, and what was kept at the sites, batch by batch."""
        for question in self.batches():
            kept = Sites(keep=sites) if sites else NO_SITES
            yield unet(*question, kept), kept.kept

    def protocol(self) -> dict[str, Any]:
        return {"samples": len(self.t), "bands": BANDS, "timesteps": "spread evenly, one draw in each n-th",
                "rows": self.listing, "latents": list(self.x.shape[1:])}


def questions(sd: StableDiffusion, data: Path, samples: int, cache: Path, seed: int = 0) -> Questions:
    """Of the folder's held-out pictures, as often as it takes, or of those that the model draws for a file's captions;
    noise and words from the seed and the sample alone."""
    words, numbers = Words(sd.text[0], cache), list(range(samples))
    batch, draws = source(sd, data, cache, seed).batch(numbers), Draws(seed, numbers)
    assert batch.latents is not None
    x0 = sd.cfg.latent_scale * batch.latents.mean
    noise, u = draws.normal(*x0.shape[1:]), draws.uniform()
    objective = Objective(sd.cfg.noise, sd.cfg.prediction)
    q = objective.question(x0, noise, objective.timesteps((torch.arange(samples) + u) / samples))
    states = [words(caption) for caption in batch.captions]
    hidden, pooled = (torch.stack(each) for each in zip(*states, strict=True))
    named = listing(f"{'drawn' if data.is_file() else row.digest} {caption}"
                    for row, caption in zip(batch.rows, batch.captions, strict=True))
    return Questions(q.x, q.t, q.target, hidden, pooled if sd.cfg.pooled_label else None, sd.cfg.noise.steps, named)


def source(sd: StableDiffusion, data: Path, cache: Path, seed: int) -> Encoded | Imagined:
    """Latents of a folder's held-out pictures; of a file's captions, those that the model draws as it likes best."""
    if not data.is_file():
        return Encoded(unseen(data, DataConfig(size=sd.cfg.size), seed), sd.vae, None, cache)
    likes = sd.defaults
    manner = Preview(steps=likes.steps, guidance=likes.guidance, sampler=likes.sampler)
    return Imagined(captions_of(data, DataConfig())[1], sd, manner, seed, cache)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each sample: [n, ...] x 2 -> [n]."""
    return (a.float() - b.float()).square().flatten(1).mean(dim=1)
