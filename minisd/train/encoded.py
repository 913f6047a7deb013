"""Pictures and captions as the UNet sees them: latents and text states, each encoded once and cached."""

from pathlib import Path

import torch
from torch import Tensor

from minisd.clip import CLIPText, TextStates
from minisd.text import tokenizer_of
from minisd.train.cache import Cache, weights_hash
from minisd.train.data import Batch, Pictures
from minisd.vae import VAE, Posterior


class Encoded:
    """Wraps Pictures: the same samples with posteriors in place of pixels, and text states where `text` is given.

    Each picture and caption is encoded the first time it is asked for, then kept in memory and on the disk.
    """

    def __init__(self, pictures: Pictures, vae: VAE, text: CLIPText | None, folder: Path):
        self.pictures, self.vae, self.text = pictures, vae, text
        self.latent_cache = Cache(folder / "latents", weights_hash(vae.encoder))
        self.text_cache = Cache(folder / "text", weights_hash(text) if text is not None else "none")
        self.moments: dict[Path, Tensor] = {}
        self.read: dict[str, TextStates] = {}

    def batch(self, numbers: list[int]) -> Batch:
        """The samples of these numbers."""
        batch = self.pictures.batch(numbers, pixels=False)
        mean, logvar = torch.stack([self.latents(n) for n in numbers]).chunk(2, dim=1)
        batch.latents = Posterior(mean, logvar)
        if self.text is not None:
            states = [self.words(caption) for caption in batch.captions]
            batch.states = TextStates(torch.stack([s.hidden for s in states]), torch.stack([s.pooled for s in states]))
        return batch

    @torch.no_grad()
    def latents(self, n: int) -> Tensor:
        """Mean and log variance of sample n's latents: [2c, h, w]."""
        row, _ = self.pictures.whole(self.pictures.order(n), decode=False)
        if row.path not in self.moments:
            content = f"{row.digest} size {self.pictures.cfg.size}"
            found = self.latent_cache.get(content)
            if found is None:
                row, picture = self.pictures.whole(self.pictures.order(n), decode=True)
                assert picture is not None
                found = {"moments": self.vae.encoder(picture[None].float() / 127.5 - 1)[0]}
                self.latent_cache.put(content, found)
            self.moments[row.path] = found["moments"]
        return self.moments[row.path]

    @torch.no_grad()
    def words(self, caption: str) -> TextStates:
        """States of a caption: hidden [window, width], pooled [width]."""
        if caption not in self.read:
            assert self.text is not None
            found = self.text_cache.get(caption)
            if found is None:
                states = self.text(torch.tensor([tokenizer_of(self.text.cfg).encode(caption, truncate=True)]))
                found = {"hidden": states.hidden[0], "pooled": states.pooled[0]}
                self.text_cache.put(caption, found)
            self.read[caption] = TextStates(found["hidden"], found["pooled"])
        return self.read[caption]
