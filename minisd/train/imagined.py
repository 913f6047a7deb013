"""Training latents without pictures: drawn by the teacher itself for each caption, once, and cached.

As in image-free distillation (Kim et al., arXiv 2504.02011, section 3): captions are all the data there is.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.pipeline import StableDiffusion
from minisd.train.cache import Cache, Tensors, maker_of
from minisd.train.config import Preview
from minisd.train.data import Batch, permutation
from minisd.train.rows import Row
from minisd.vae import Posterior
from minisd.walk import draw_latents

CERTAIN = -60.0                                   # log variance of latents that are known


class Imagined:
    """The samples of captions alone: sample n is a caption of its epoch's permutation, with the teacher's latents."""

    def __init__(self, captions: list[str], sd: StableDiffusion, manner: Preview, seed: int, cache: Path):
        self.captions, self.sd, self.manner, self.seed = captions, sd, manner, seed
        settings = replace(manner, prompts=())
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
        caption, seed = self.captions[place], self.manner.seed + place
        return self.latents.recall(f"{seed} {caption}", lambda: self.draw(caption, seed))["latents"]

    def draw(self, caption: str, seed: int) -> Tensors:
        """One walk of the teacher's from noise to latents, alone, so that they depend on nothing else."""
        sd, manner = self.sd.ready(), self.manner
        drawing = sd.drawing(caption, "", manner.steps, manner.guidance, manner.sampler, seed)
        with torch.inference_mode(), torch.autocast(sd.device.type, torch.bfloat16, sd.dtype == torch.bfloat16):
            latents = draw_latents(sd, [drawing], canvas=None, on_step=None)
        return {"latents": latents[0].cpu().clone()}
