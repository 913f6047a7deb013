"""Pictures and captions as the UNet sees them: latents and text states, each encoded once and cached."""

from pathlib import Path

import torch
from torch import Tensor

from minisd.clip import CLIPText, TextStates
from minisd.text import tokenizer_of
from minisd.train.cache import Cache, Tensors, maker_of
from minisd.train.data import Batch, Pictures
from minisd.train.rows import Row
from minisd.vae import VAE, Posterior


class Encoded:
    """Wraps Pictures: the same samples with posteriors in place of pixels, and text states where `text` is given.

    Pictures and captions are encoded one by one and in float32, so that what is cached depends on nothing else.
    """

    def __init__(self, pictures: Pictures, vae: VAE, text: CLIPText | None, folder: Path):
        self.pictures, self.vae, self.text = pictures, vae, text
        self.latents = Cache(folder / "latents", maker_of(vae.encoder, vae.cfg))
        self.texts = Cache(folder / "text", maker_of(text, text.cfg) if text is not None else "none")

    def batch(self, numbers: list[int]) -> Batch:
        """The samples of these numbers."""
        samples = [self.pictures.sample(n, self.moments) for n in numbers]
        captions = [one.caption for one in samples]
        mean, logvar = torch.stack([one.value for one in samples]).chunk(2, dim=1)
        batch = Batch([one.row for one in samples], captions, latents=Posterior(mean, logvar))
        if self.text is not None:
            states = [self.words(caption) for caption in captions]
            batch.states = TextStates(torch.stack([s.hidden for s in states]), torch.stack([s.pooled for s in states]))
        return batch

    def moments(self, row: Row) -> Tensor:
        """Mean and log variance of a picture's latents: [2c, h, w]."""
        content = f"{row.digest} size {self.pictures.cfg.size}"
        return self.latents.recall(content, lambda: self.encode(row))["moments"]

    def words(self, caption: str) -> TextStates:
        """States of a caption: hidden [window, width], pooled [width]."""
        found = self.texts.recall(caption, lambda: self.read(caption))
        return TextStates(found["hidden"], found["pooled"])

    @torch.no_grad()
    def encode(self, row: Row) -> Tensors:
        pixels = self.pictures.opened(row)[None].float() / 127.5 - 1
        with torch.autocast("cpu", enabled=False):
            return {"moments": torch.cat(self.vae.encode(pixels), dim=1)[0]}

    @torch.no_grad()
    def read(self, caption: str) -> Tensors:
        assert self.text is not None
        ids = tokenizer_of(self.text.cfg).encode(caption, truncate=True)
        with torch.autocast("cpu", enabled=False):
            states = self.text(torch.tensor([ids]))
        return {"hidden": states.hidden[0], "pooled": states.pooled[0]}
