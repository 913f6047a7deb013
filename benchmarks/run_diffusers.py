"""diffusers at work, as its users get it: everything by `from_pretrained`, its defaults left alone.

With `channels_last` its UNet and VAE are given that layout, as its own guide to speed advises; the allocator is set in
the environment.
"""

import jobs
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor


class Contestant:
    """The whole pipeline, loaded from a folder; each method is the job of a row."""

    def __init__(self, folder: str, dtype: str, side: int, channels_last: bool = False):
        self.side = side
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.pipe.set_progress_bar_config(disable=True)
        if channels_last:
            self.pipe.unet.to(memory_format=torch.channels_last)
            self.pipe.vae.to(memory_format=torch.channels_last)
        self.inputs = jobs.inputs(self.pipe.unet.dtype, side, self.pipe.unet.config.cross_attention_dim)

    def parameters(self) -> int:
        return sum(p.numel() for part in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder)
                   for p in part.parameters())

    def text(self) -> Tensor:
        wanted, negative = self.pipe.encode_prompt(jobs.PROMPT, "cpu", 1, True, jobs.NEGATIVE)
        return torch.cat([negative, wanted])

    def unet(self) -> Tensor:
        return jobs.guide(self.pipe.unet(self.inputs.pair, jobs.TIMESTEP, self.inputs.context).sample)

    def vae(self) -> Tensor:
        return self.pipe.vae.decode(self.inputs.latents).sample

    def picture(self, steps: int = jobs.STEPS) -> Tensor:
        pixels = 8 * self.side
        image, = self.pipe(jobs.PROMPT, pixels, pixels, num_inference_steps=steps, latents=self.inputs.latents,
                           guidance_scale=jobs.GUIDANCE, negative_prompt=jobs.NEGATIVE).images
        return torch.from_numpy(np.array(image))
