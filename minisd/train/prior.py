"""Class pictures for prior preservation: drawn by the model itself before it learns, and cached for all runs of it."""

from pathlib import Path

import torch

from minisd.clip import TextStates
from minisd.fast import passes
from minisd.pipeline import StableDiffusion
from minisd.train.config import Preview
from minisd.train.data import Batch
from minisd.train.encoded import Words
from minisd.train.imagined import CERTAIN, Imagined
from minisd.train.rows import Row
from minisd.train.tuning import Prior
from minisd.vae import Posterior


class ClassPictures:
    """Latents of what a model draws for the class's prompt, from so many seeds; sample n is one of them, in turn."""

    def __init__(self, sd: StableDiffusion, prior: Prior, seed: int, cache: Path):
        self.prompt, self.scale = prior.prompt, sd.cfg.latent_scale
        likes = sd.defaults
        manner = Preview((), likes.steps, likes.guidance, likes.sampler, seed % 2 ** 31)
        drawn = Imagined([prior.prompt] * prior.count, sd, manner, seed, cache)
        self.latents = torch.stack([drawn.recall(place) for place in range(prior.count)])
        for network in (sd.unet, sd.vae, *sd.text):
            passes.plain(network)                 # drawing has quickened them

    def batch(self, numbers: list[int], words: Words | None) -> Batch:
        """The samples of these numbers, with the states of their words where they are at hand."""
        mean = self.latents[[n % len(self.latents) for n in numbers]] / self.scale
        batch = Batch([Row(Path(), (self.prompt,)) for _ in numbers], [self.prompt] * len(numbers),
                      latents=Posterior(mean, torch.full_like(mean, CERTAIN)))
        if words is not None:
            batch.states = TextStates(*(part.expand(len(numbers), *part.shape) for part in words(self.prompt)))
        return batch
