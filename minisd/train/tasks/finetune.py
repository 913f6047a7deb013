"""Training the denoiser in latent space (Rombach et al. 2022; Ho et al. 2020): noise a picture's latents, ask the UNet
for the noise (or v), now and then without words so that guidance has something to lead away from."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.clip import CLIPText, TextStates
from minisd.config import ModelConfig
from minisd.images import grid
from minisd.pipeline import StableDiffusion
from minisd.text import tokenizer_of
from minisd.train.config import FinetuneTask, Preview
from minisd.train.data import Batch
from minisd.train.draws import Draws
from minisd.train.encoded import Encoded
from minisd.train.objective import Objective, error
from minisd.train.tasks import model


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
    modules: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        random = self.options.start == "random"
        unet = model.new(self.cfg, "unet", self.seed) if random else model.take(self.model, "unet")
        text = model.take(self.model, "text").requires_grad_(self.options.train_text)
        self.modules = nn.ModuleDict({"unet": unet.to(memory_format=torch.channels_last), "text": text})  # type: ignore[call-overload]
        self.tokenizer = tokenizer_of(self.cfg.text[0])
        self.objective = Objective(self.cfg.noise, self.cfg.prediction, self.options.min_snr, self.options.shift)
        self.empty = self.data.words("") if not self.options.train_text else None

    def trained(self) -> nn.Module:
        return self.modules

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        return {"denoise": self.error(batch, draws, self.options.empty_captions)}

    def error(self, batch: Batch, draws: Draws, empty_captions: float) -> Tensor:
        """Weighted squared error of the prediction: a scalar."""
        assert batch.latents is not None
        latent_noise, noise = draws.normal(*batch.latents.mean.shape[1:]), draws.normal(*batch.latents.mean.shape[1:])
        u, dropped = draws.uniform(), draws.uniform() < empty_captions
        if self.options.offset_noise:  # a constant per channel, so that overall brightness is learnt too
            noise = noise + self.options.offset_noise * draws.normal(noise.shape[1], 1, 1)
        x0 = self.cfg.latent_scale * batch.latents.sample(latent_noise)
        x, t, target, weight = self.objective.question(x0, noise, self.objective.timesteps(u))
        states = self.states(batch, dropped)
        label = states.pooled if self.cfg.pooled_label else None
        out = self.modules["unet"](x.contiguous(memory_format=torch.channels_last), t, states.hidden, label)
        return error(out, target, weight)

    def states(self, batch: Batch, dropped: Tensor) -> TextStates:
        """Text states of the captions, of no words where `dropped`."""
        if self.empty is None:
            captions = ["" if none else caption for none, caption in zip(dropped.tolist(), batch.captions, strict=True)]
            ids = torch.tensor([self.tokenizer.encode(caption, truncate=True) for caption in captions])
            return self.modules["text"](ids)
        assert batch.states is not None
        return TextStates(torch.where(dropped[:, None, None], self.empty.hidden, batch.states.hidden),
                          torch.where(dropped[:, None], self.empty.pooled, batch.states.pooled))

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """A sheet of the recipe's prompts, and the loss on held-out pictures at fixed noise and timesteps."""
        shown, cfg = self.shown, self.cfg
        text: CLIPText = self.modules["text"]  # type: ignore[assignment]
        pipe = StableDiffusion(cfg, self.modules["unet"], self.data.vae, (text,))  # type: ignore[arg-type]
        if shown.prompts:
            pictures = pipe.txt2img(list(shown.prompts), steps=shown.steps, cfg=shown.guidance, sampler=shown.sampler,
                                    seed=shown.seed)
            folder.mkdir(parents=True, exist_ok=True)
            grid(pictures, columns=8).save(folder / f"{step:07d}.png")
        return {"held_out": self.measure()}

    def measure(self) -> float:
        """Denoising error on held-out pictures; their noise and timesteps are the same every time."""
        numbers = list(range(min(128, len(self.held_out.pictures.rows))))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.error(self.held_out.batch(numbers), Draws(self.seed, numbers), 0.0).item()

    def export(self, folder: Path) -> None:
        """The UNet, and the text encoder where it has learnt."""
        parts = ("unet", "text") if self.options.train_text else ("unet",)
        model.put(folder, self.cfg, {name: self.modules[name] for name in parts})
