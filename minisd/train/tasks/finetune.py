"""Training the denoiser in latent space (Rombach et al. 2022; Ho et al. 2020): noise a picture's latents, ask the UNet
for the noise (or v), now and then without words so that guidance has something to lead away from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from minisd.clip import CLIPText
from minisd.config import ModelConfig
from minisd.devices import CPU, pick_dtype
from minisd.drawing.plan import Defaults
from minisd.errors import USAGE, MinisdError
from minisd.images import grid
from minisd.pipeline import StableDiffusion
from minisd.train.config import FinetuneTask, Preview
from minisd.train.data import Batch
from minisd.train.denoising import Denoising
from minisd.train.draws import Draws
from minisd.train.encoded import Encoded
from minisd.train.objective import Objective
from minisd.train.tasks import model
from minisd.unet import UNet

MEASURED = 128                                    # held-out pictures whose loss is taken
COLUMNS, TOGETHER = 8, 8                          # of the sheet; pictures drawn at a time


@dataclass
class Finetune:
    """The UNet, and the text encoder with it where asked."""

    cfg: ModelConfig
    options: FinetuneTask
    model: Path
    data: Encoded
    held_out: Encoded
    shown: Preview
    seed: int
    device: torch.device = CPU
    modules: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        if len(self.cfg.text) != 1:
            raise MinisdError(f"a model with {len(self.cfg.text)} text encoders", "finetune",
                              "one is trained with", "give a model with one", USAGE)
        random = self.options.start == "random"
        unet = model.new(self.cfg, "unet", self.seed) if random else model.take(self.model, "unet")
        text = model.take_text(self.model).requires_grad_(self.options.train_text)
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules = nn.ModuleDict({"unet": unet, "text": text}).to(self.device)
        objective = Objective(self.cfg.noise, self.cfg.prediction, self.options.min_snr, self.options.shift)
        empty = None if self.data.words is None else self.data.words("")
        self.denoising = Denoising(self.cfg, self.unet, self.text, objective, self.options.offset_noise, empty)

    @property
    def unet(self) -> UNet:
        return cast(UNet, self.modules["unet"])

    @property
    def text(self) -> CLIPText:
        return cast(CLIPText, self.modules["text"])

    def trained(self) -> nn.Module:
        return self.modules

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        return {"denoise": self.denoising.error(batch, draws, self.options.empty_captions)}

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """A sheet of the recipe's prompts, and the loss on held-out pictures at fixed noise and timesteps.

        Drawn in the precision that a user of this machine gets, with the weights as they are trained.
        """
        shown = self.shown
        lowered = torch.bfloat16 in (pick_dtype("auto", self.device), self.unet.conv_in.weight.dtype)
        if shown.prompts:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lowered):
                drawn = StableDiffusion(self.cfg, self.unet, self.data.vae, (self.text,)).txt2img(
                    shown.prompts, steps=shown.steps, cfg=shown.guidance, sampler=shown.sampler, seed=shown.seed,
                    batch=TOGETHER)
            folder.mkdir(parents=True, exist_ok=True)
            grid(drawn, COLUMNS).save(folder / f"{step:07d}.png")
        return {"held_out": self.measure()}

    @torch.no_grad()
    def measure(self) -> float:
        """Denoising error on held-out pictures; their noise and timesteps are the same every time."""
        numbers = list(range(min(MEASURED, len(self.held_out.pictures.rows))))
        draws = Draws(self.seed, numbers, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.denoising.error(self.held_out.batch(numbers), draws, 0.0).item()

    def export(self, folder: Path) -> None:
        """The UNet, and the text encoder where it has learnt; the model draws as the previews do when nobody says."""
        parts = ("unet", "text") if self.options.train_text else ("unet",)
        manner = Defaults(self.shown.steps, self.shown.guidance, self.shown.sampler)
        model.put(folder, self.cfg, {name: self.modules[name] for name in parts}, manner)
