"""The error of a denoiser on a batch of latents with captions: what every task in latent space minimises."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.clip import CLIPText, TextStates
from minisd.config import ModelConfig
from minisd.text import tokenizer_of
from minisd.train.data import Batch
from minisd.train.draws import Draws
from minisd.train.objective import Objective, error
from minisd.unet import UNet


@dataclass(frozen=True)
class Denoising:
    """A UNet and what it is asked. `empty` are the states of no words, where the batches bring theirs along."""

    cfg: ModelConfig
    unet: UNet
    text: CLIPText
    objective: Objective
    offset_noise: float = 0.0
    empty: TextStates | None = None

    def error(self, batch: Batch, draws: Draws, empty_captions: float) -> Tensor:
        """Weighted squared error of the prediction: a scalar."""
        assert batch.latents is not None
        shape = batch.latents.mean.shape[1:]
        latent_noise, noise = draws.normal(*shape), draws.normal(*shape)
        u, dropped = draws.uniform(), draws.uniform() < empty_captions
        if self.offset_noise:                     # a constant per channel, so that overall brightness is learnt too
            noise = noise + self.offset_noise * draws.normal(shape[0], 1, 1)
        posterior = type(batch.latents)(*(part.to(draws.device) for part in batch.latents))
        x0 = self.cfg.latent_scale * posterior.sample(latent_noise)
        x, t, target, weight = self.objective.question(x0, noise, self.objective.timesteps(u))
        states = self.states(batch, dropped)
        label = states.pooled if self.cfg.pooled_label else None
        out = self.unet(x.contiguous(memory_format=torch.channels_last), t, states.hidden, label)
        return error(out, target, weight, None if batch.mask is None else batch.mask.to(out.device))

    def states(self, batch: Batch, dropped: Tensor) -> TextStates:
        """Text states of the captions, of no words where `dropped`."""
        if self.empty is None:
            captions = ["" if none else caption for none, caption in zip(dropped.tolist(), batch.captions, strict=True)]
            tokenizer = tokenizer_of(self.text.cfg)
            ids = [tokenizer.encode(caption, truncate=True) for caption in captions]
            return self.text(torch.tensor(ids, device=dropped.device))
        assert batch.states is not None
        hidden, pooled = (part.to(dropped.device) for part in batch.states)
        none_hidden, none_pooled = (part.to(dropped.device) for part in self.empty)
        return TextStates(torch.where(dropped[:, None, None], none_hidden, hidden),
                          torch.where(dropped[:, None], none_pooled, pooled))
