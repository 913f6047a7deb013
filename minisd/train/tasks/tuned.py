"""Making a model one's own: the denoising error of one's pictures, and beside it that of what the model drew before.

Which parameters learn, at what rates and how they are taken home is data (`Learnt`): each method makes its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.fast import passes
from minisd.images import grid
from minisd.pipeline import StableDiffusion
from minisd.train.config import Preview
from minisd.train.data import Batch
from minisd.train.denoising import Denoising
from minisd.train.draws import Draws
from minisd.train.encoded import Encoded
from minisd.train.objective import Objective
from minisd.train.tuning import Tuning

MEASURED, TOGETHER = 64, 8                        # samples that are measured, several of a picture; taken at a time
COLUMNS = 8                                       # of the sheet


@dataclass(frozen=True)
class Learnt:
    """What a method trains: parameters by their names in `parts`, each at so many times the learning rate; how it is
    written into a folder, what it is called there, and which option of `minisd.generate` takes it."""

    rates: Mapping[str, float]
    export: Callable[[Path], None]
    file: str
    option: str


def parts(sd: StableDiffusion) -> nn.ModuleDict:
    """The networks that can be trained, by the names that files have for them."""
    return nn.ModuleDict({"unet": sd.unet, "text": sd.text[0]})


@dataclass
class Tuned:
    """A model that learns what `learnt` names; `prior` holds the class pictures' latents, where there are any."""

    sd: StableDiffusion
    options: Tuning
    learnt: Learnt
    data: Encoded
    held_out: Encoded
    shown: Preview
    seed: int
    modules: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        options, cfg = self.options, self.sd.cfg
        self.modules = parts(self.sd)
        for name, parameter in self.modules.named_parameters():
            parameter.requires_grad_(name in self.learnt.rates)
        self.sd.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = Objective(cfg.noise, cfg.prediction, options.min_snr, options.shift)
        empty = None if self.data.words is None else self.data.words("")
        self.denoising = Denoising(cfg, self.sd.unet, self.sd.text[0], objective, options.offset_noise, empty)

    def trained(self) -> nn.Module:
        return self.modules

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        """The subject's error, and the class pictures' apart."""
        terms = {"denoise": self.denoising.error(batch, draws, self.options.empty_captions)}
        if batch.prior is not None and self.options.prior is not None:
            terms["prior"] = self.options.prior.weight * self.denoising.error(batch.prior, draws, 0.0)
        return terms

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """A sheet of the recipe's prompts, and errors at noise and timesteps that are the same every time: of held-out
        pictures and of those that are learnt. Where the first rises while the second falls, memorising has begun."""
        shown = self.shown
        if shown.prompts:
            drawn = self.sd.txt2img(shown.prompts, steps=shown.steps, cfg=shown.guidance, sampler=shown.sampler,
                                    seed=shown.seed, batch=TOGETHER)
            folder.mkdir(parents=True, exist_ok=True)
            grid(drawn, COLUMNS).save(folder / f"{step:07d}.png")
            for network in (self.sd.unet, self.sd.vae, *self.sd.text):
                passes.plain(network)             # drawing has quickened what does not learn
        return {"held_out": self.measure(self.held_out), "seen": self.measure(self.data)}

    @torch.no_grad()
    def measure(self, source: Encoded) -> float:
        """Mean error of a source's pictures, in float32."""
        found = []
        for start in range(0, MEASURED, TOGETHER):
            numbers = list(range(start, start + TOGETHER))
            found.append(self.denoising.error(source.batch(numbers), Draws(self.seed, numbers, self.sd.device), 0.0))
        return torch.stack(found).mean().item()

    def export(self, folder: Path) -> None:
        self.learnt.export(folder)
