"""minisd and diffusers drawing on a device, plainly and as fast as their users have them, for `gpu.py`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from measure import HERE, OURS, THEIRS
from torch import Tensor

sys.path.insert(0, str(HERE.parent))

from minisd import store

COMPILED, FAST = f"{OURS} compiled", f"{THEIRS} fast"


@dataclass(frozen=True)
class Place:
    """Where the weights are, and what is computed where."""

    weights: Path
    device: torch.device
    dtype: str
    side: int                                         # of the latents

    def inputs(self, width: int, batch: int) -> tuple[Tensor, Tensor]:
        """Latents and text states of so many pictures, each in a pair as guidance has them."""
        given = jobs.inputs(getattr(torch, self.dtype), self.side, width)
        pair, context = (t.repeat_interleave(batch, 0) for t in (given.pair, given.context))
        return pair.to(self.device), context.to(self.device)

    @property
    def traced(self) -> dict[str, Any]:
        """How torch.compile is asked; on the processor the graph is traced, and computed as it is."""
        return {"mode": "reduce-overhead"} if self.device.type == "cuda" else {"backend": "eager"}


class Ours:
    """By `load`, and nothing tuned; compiled as any module of PyTorch's is."""

    def __init__(self, place: Place, fast: bool):
        self.place = place
        self.sd = store.load(place.weights / OURS, str(place.device), place.dtype).ready()
        if fast:
            self.sd.unet.compile(fullgraph=True, **place.traced)

    def step(self, batch: int) -> Callable[[], Tensor]:
        x, context = self.place.inputs(self.sd.cfg.unet.context_dim, batch)
        t = torch.full((len(x),), float(jobs.TIMESTEP), device=x.device)
        return lambda: self.sd.unet(x, t, context)

    def picture(self, steps: int) -> Callable[[], Any]:
        pixels = 8 * self.place.side
        return lambda: self.sd.txt2img(jobs.PROMPT, jobs.NEGATIVE, steps=steps, cfg=jobs.GUIDANCE, sampler="ddim",
                                       seed=jobs.SEED, size=(pixels, pixels))


class Theirs:
    """By `from_pretrained`; fast as its guide to speed has it: channels_last, fused projections, torch.compile."""

    def __init__(self, place: Place, fast: bool):
        self.place = place
        self.pipe = StableDiffusionPipeline.from_pretrained(place.weights / THEIRS, dtype=getattr(torch, place.dtype))
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.to(place.device).set_progress_bar_config(disable=True)
        if fast:
            self.pipe.fuse_qkv_projections()
            self.pipe.unet.to(memory_format=torch.channels_last)
            self.pipe.vae.to(memory_format=torch.channels_last)
            self.pipe.unet = torch.compile(self.pipe.unet, fullgraph=True, **place.traced)
            self.pipe.vae.decode = torch.compile(self.pipe.vae.decode, fullgraph=True, **place.traced)

    def step(self, batch: int) -> Callable[[], Tensor]:
        x, context = self.place.inputs(self.pipe.unet.config.cross_attention_dim, batch)
        t = torch.tensor(jobs.TIMESTEP, device=x.device)
        return lambda: self.pipe.unet(x, t, context).sample

    def picture(self, steps: int) -> Callable[[], Any]:
        pixels = 8 * self.place.side
        return lambda: self.pipe(jobs.PROMPT, pixels, pixels, num_inference_steps=steps, guidance_scale=jobs.GUIDANCE,
                                 negative_prompt=jobs.NEGATIVE,
                                 generator=torch.Generator().manual_seed(jobs.SEED)).images


DRAWING: dict[str, Callable[[Place], Any]] = {
    OURS: lambda place: Ours(place, False), COMPILED: lambda place: Ours(place, True),
    THEIRS: lambda place: Theirs(place, False), FAST: lambda place: Theirs(place, True)}
