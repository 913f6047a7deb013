"""Pictures and captions as the UNet sees them: latents and text states, each encoded once and cached."""

from pathlib import Path

import torch
from torch import Tensor

from minisd.clip import CLIPText, TextStates
from minisd.text import tokenizer_of
from minisd.train.cache import Cache, Tensors, maker_of
from minisd.train.data import Batch, Pictures
from minisd.train.masks import mask_of
from minisd.train.rows import Row
from minisd.vae import VAE, Posterior


class Words:
    """States of captions, each read once and alone."""

    def __init__(self, text: CLIPText, folder: Path):
        self.text = text
        self.cache = Cache(folder / "text", maker_of(text, text.cfg))

    def __call__(self, caption: str) -> TextStates:
        """hidden [window, width], pooled [width]."""
        found = self.cache.recall(caption, lambda: self.read(caption))
        return TextStates(found["hidden"], found["pooled"])

    @torch.enable_grad()                          # then quickened layers, too, compute as plain ones: see `read`
    def read(self, caption: str) -> Tensors:
        """To the same bits whether a preview, in another thread even, has quickened the encoder or not."""
        ids = tokenizer_of(self.text.cfg).encode(caption, truncate=True)
        device = self.text.token.weight.device
        with torch.autocast(device.type, enabled=False):
            states = self.text(torch.tensor([ids], device=device))
        return {"hidden": states.hidden[0].detach().cpu(), "pooled": states.pooled[0].detach().cpu()}


class Encoded:
    """Wraps Pictures: the same samples with posteriors in place of pixels, and text states where `text` is given.

    Pictures and captions are encoded one by one and in float32, so that what is cached depends on nothing else.
    """

    def __init__(self, pictures: Pictures, vae: VAE, text: CLIPText | None, folder: Path):
        self.pictures, self.vae, self.text = pictures, vae, text
        self.masks: dict[Path, Tensor] = {}
        self.latents = Cache(folder / "latents", maker_of(vae.encoder, vae.cfg))
        self.words = Words(text, folder) if text is not None else None
        self.captions = [row.captions[0] for row in pictures.rows]

    def batch(self, numbers: list[int]) -> Batch:
        """The samples of these numbers."""
        samples = [self.pictures.sample(n, self.masked if self.pictures.cfg.masks else self.moments) for n in numbers]
        captions = [one.caption for one in samples]
        channels, values = self.vae.cfg.latent_channels, torch.stack([one.value for one in samples])
        mean, logvar, mask = values.split([channels, channels, values.shape[1] - 2 * channels], dim=1)
        batch = Batch([one.row for one in samples], captions, latents=Posterior(mean, logvar))
        batch.mask = mask if self.pictures.cfg.masks else None
        if self.words is not None:
            states = [self.words(caption) for caption in captions]
            batch.states = TextStates(torch.stack([s.hidden for s in states]), torch.stack([s.pooled for s in states]))
        return batch

    def moments(self, row: Row, mirrored: bool) -> Tensor:
        """Mean and log variance of the latents of a picture, or of its mirror image: [2c, h, w]."""
        content = f"{row.digest} {self.pictures.shape(row)}{' mirrored' if mirrored else ''}"
        return self.latents.recall(content, lambda: self.encode(row, mirrored))["moments"]

    def masked(self, row: Row, mirrored: bool) -> Tensor:
        """The moments, and behind them how much each place counts: [2c + 1, h, w]."""
        if row.path not in self.masks:
            self.masks[row.path] = mask_of(row, lambda picture: self.pictures.fit(row, picture), self.vae.cfg.factor)
        mask = self.masks[row.path]
        return torch.cat([self.moments(row, mirrored), mask.flip(2) if mirrored else mask])

    @torch.no_grad()
    def encode(self, row: Row, mirrored: bool = False) -> Tensors:
        opened, weights = self.pictures.opened(row), self.vae.encoder.conv_in.weight
        pixels = (opened.flip(2) if mirrored else opened)[None].to(weights.device).float() / 127.5 - 1
        with torch.autocast(weights.device.type, enabled=False):
            return {"moments": torch.cat(self.vae.encode(pixels), dim=1)[0].cpu()}
