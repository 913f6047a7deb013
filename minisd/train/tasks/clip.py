"""Training CLIP's two towers by contrast (Radford et al. 2021, section 2.3): of all captions of a batch, each picture
must pick its own, and each caption its picture."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.clip import CLIPText, CLIPVision
from minisd.config import ModelConfig
from minisd.devices import CPU
from minisd.text import tokenizer_of
from minisd.train.config import CLIPTask
from minisd.train.data import Batch, Pictures
from minisd.train.draws import Draws
from minisd.train.tasks import model

LARGEST_SCALE = math.log(100)                     # of the logits, as in the paper
MEASURED = 1024                                   # held-out pictures among which each caption is sought
TOGETHER = 64                                     # pictures looked at a time outside of training


class Towers(nn.Module):
    """Text and vision tower and the learnt scale of their cosines."""

    def __init__(self, text: CLIPText, vision: CLIPVision, temperature: float):
        super().__init__()
        self.text, self.vision = text, vision
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """[b, 3, s, s], [b, n] -> logits [b pictures, b captions]."""
        pictures = F.normalize(self.vision(pixels).float(), dim=-1)
        captions = F.normalize(self.text(ids).pooled.float(), dim=-1)
        return self.log_scale.clamp(max=LARGEST_SCALE).exp() * pictures @ captions.T


@dataclass
class TrainCLIP:
    """Pictures and captions, side by side."""

    cfg: ModelConfig
    options: CLIPTask
    model: Path
    held_out: Pictures
    seed: int
    device: torch.device = CPU
    towers: Towers = field(init=False)

    def __post_init__(self) -> None:
        text, vision = (model.take_or_new(self.model, self.cfg, name, self.seed) for name in ("text", "vision"))
        self.towers = Towers(cast(CLIPText, text), cast(CLIPVision, vision), self.options.temperature).to(self.device)
        self.tokenizer = tokenizer_of(self.cfg.text[0])

    def trained(self) -> nn.Module:
        return self.towers

    def ids(self, captions: list[str]) -> Tensor:
        ids = [self.tokenizer.encode(caption, truncate=True) for caption in captions]
        return torch.tensor(ids, device=self.device)

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        assert batch.pixels is not None
        logits = self.towers(batch.pixels.to(self.device), self.ids(batch.captions))
        own = torch.arange(len(logits), device=self.device)
        return {"pictures": F.cross_entropy(logits, own) / 2, "captions": F.cross_entropy(logits.T, own) / 2}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Share of held-out pictures whose plain caption is the first, or among the first five, of all of them."""
        batch = self.held_out.batch(list(range(min(MEASURED, len(self.held_out.rows)))))
        assert batch.pixels is not None
        parts = batch.pixels.to(self.device).split(TOGETHER)
        pictures = F.normalize(torch.cat([self.towers.vision(x) for x in parts]), dim=-1)
        captions = F.normalize(self.towers.text(self.ids(batch.captions)).pooled, dim=-1)
        similarity = pictures @ captions.T
        rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
        first, five = (rank == 0).float().mean().item(), (rank < 5).float().mean().item()
        return {"top1": first, "top5": five, "of": float(len(rank))}

    def export(self, folder: Path) -> None:
        """Both towers."""
        model.put(folder, self.cfg, {"text": self.towers.text, "vision": self.towers.vision})
