"""minisd at work, as its users get it: everything by `minisd.load`, nothing tuned here."""

import jobs
import numpy as np
import torch
from torch import Tensor

import minisd
from minisd.fast.passes import quicken

load = minisd.load                                    # the package's names are fetched when they are first used


class Contestant:
    """The whole model, loaded from a folder; each method is the job of a row."""

    def __init__(self, folder: str, dtype: str, side: int, channels_last: bool = False):
        assert not channels_last, "minisd chooses its own layout"
        self.sd, self.side = load(folder, "cpu", dtype), side
        self.inputs = jobs.inputs(self.sd.dtype, side, self.sd.cfg.unet.context_dim)

    def parameters(self) -> int:
        return sum(p.numel() for part in (self.sd.unet, self.sd.vae, *self.sd.text) for p in part.parameters())

    def text(self) -> Tensor:
        for model in self.sd.text:
            quicken(model)                            # as `draw` does; after the first time there is nothing to do
        return self.sd.encode([jobs.NEGATIVE, jobs.PROMPT]).context

    def unet(self) -> Tensor:
        quicken(self.sd.unet)
        t = torch.full((2,), float(jobs.TIMESTEP))
        return jobs.guide(self.sd.unet(self.inputs.pair, t, self.inputs.context))

    def vae(self) -> Tensor:
        quicken(self.sd.vae.decoder, packed=False)
        return self.sd.vae.decode(self.inputs.latents)

    def picture(self, steps: int = jobs.STEPS) -> Tensor:
        pixels = 8 * self.side
        image, = self.sd.txt2img(jobs.PROMPT, jobs.NEGATIVE, steps=steps, cfg=jobs.GUIDANCE, sampler="ddim",
                                 seed=jobs.SEED, size=(pixels, pixels))
        return torch.from_numpy(np.array(image))
