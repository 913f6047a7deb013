"""Training latents without pictures: drawn by the teacher itself for each caption, once, and cached.

As in image-free distillation (Kim et al., arXiv 2504.02011, section 3): captions are all the data there is.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minisd.drawing.walk import draw_latents
from minisd.pipeline import StableDiffusion
from minisd.train.cache import Cache, Tensors, maker_of
from minisd.train.config import Preview
from minisd.train.data import Batch, permutation
from minisd.train.rows import Row
from minisd.vae import Posterior

CERTAIN = -60.0                                   # log variance of latents that are known
TOGETHER = 8                                      # captions drawn at once, in a third of the time


class Imagined:
    """The samples of captions alone: sample n is a caption of its epoch's permutation, with the teacher's latents.

    Captions that follow each other in the first epoch are drawn at once, always the same ones: the last bits of a walk
    depend on its neighbours, and a run that was killed among them shall go on to the bit.
    """

    def __init__(self, captions: list[str], sd: StableDiffusion, manner: Preview, seed: int, cache: Path):
        self.captions, self.sd, self.manner, self.seed = captions, sd, manner, seed
        settings = replace(manner, prompts=())
        order = permutation(seed, 0, len(captions)).tolist()
        groups = [order[n:n + TOGETHER] for n in range(0, len(order), TOGETHER)]
        self.group = {place: group for group in groups for place in group}
        self.latents = Cache(cache / "imagined", maker_of(sd.unet, (settings, sd.cfg.size)))

    def batch(self, numbers: list[int]) -> Batch:
        """The samples of these numbers."""
        chosen = [self.order(n) for n in numbers]
        captions = [self.captions[place] for place in chosen]
        latents = torch.stack([self.recall(place) for place in chosen]) / self.sd.cfg.latent_scale
        return Batch([Row(Path(), (caption,)) for caption in captions], captions,
                     latents=Posterior(latents, torch.full_like(latents, CERTAIN)))

    def order(self, n: int) -> int:
        epoch, place = divmod(n, len(self.captions))
        return int(permutation(self.seed, epoch, len(self.captions))[place])

    def recall(self, place: int) -> Tensor:
        """Scaled latents [c, h, w] of a caption, drawn with its place as the seed."""
        return self.latents.recall(self.content(place), lambda: self.drawn_with(place))["latents"]

    def content(self, place: int) -> str:
        """What the latents of a caption depend on: itself and its group."""
        group = self.group[place]
        return "\n".join([str(group.index(place)), *(f"{self.seed_of(one)} {self.captions[one]}" for one in group)])

    def seed_of(self, place: int) -> int:
        return self.manner.seed + place

    def drawn_with(self, place: int) -> Tensors:
        """A caption's latents; those of its group are kept as well."""
        group = self.group[place]
        drawn = {one: {"latents": latents.clone()} for one, latents in zip(group, self.draw(group), strict=True)}
        for one in group:
            if one != place:
                self.latents.recall(self.content(one), partial(drawn.__getitem__, one))
        return drawn[place]

    def draw(self, group: list[int]) -> Tensor:
        """Walks of the teacher's from noise to latents [n, c, h, w], for captions by their places."""
        sd, manner = self.sd.ready(), self.manner
        drawings = [sd.drawing(self.captions[place], "", manner.steps, manner.guidance, manner.sampler,
                               self.seed_of(place)) for place in group]
        with torch.inference_mode(), torch.autocast(sd.device.type, torch.bfloat16, sd.dtype == torch.bfloat16):
            return draw_latents(sd, drawings, canvas=None, on_step=None).cpu()
