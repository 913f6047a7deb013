"""Distilling a UNet into a part of itself (Kim et al., BK-SDM, arXiv 2305.15798, eq. 1 to 4): the student learns the
noise in the data, the teacher's answer to it, and the teacher's features at paired sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd import surgery
from minisd.clip import TextStates
from minisd.config import ModelConfig
from minisd.devices import pick_dtype
from minisd.errors import USAGE, MinisdError
from minisd.fast.passes import quicken
from minisd.pipeline import StableDiffusion
from minisd.sites import Sites, unet_sites
from minisd.train.config import Preview
from minisd.train.data import Batch
from minisd.train.draws import Draws
from minisd.train.experiment import DistillTask
from minisd.train.objective import Objective, Question, error
from minisd.train.tasks.gallery import drawn_once, save_whole, side_by_side
from minisd.unet import UNet

MEASURED, TOGETHER = 128, 8                       # held-out samples that are measured; pictures drawn at a time
REFERENCES = "references"                         # folder of what the teacher and the untrained student draw
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Source(Protocol):
    """Batches with latents and text states, and the captions that they are of."""

    captions: list[str]

    def batch(self, numbers: list[int], /) -> Batch: ...


class Asked(NamedTuple):
    """What both networks are asked: noised latents under text states [b, n, d]; `paired` [b] where text and latents
    belong together."""

    question: Question
    hidden: Tensor
    label: Tensor | None
    paired: Tensor


@dataclass
class Distill:
    """A student of the UNet in `sd`, which is brought to the teacher's precision; `cfg` has the student's UNet."""

    cfg: ModelConfig
    options: DistillTask
    sd: StableDiffusion
    student: UNet
    data: Source
    held_out: Source
    words: Callable[[str], TextStates]
    shown: Preview
    seed: int
    steps: int
    batch: int                                    # samples measured at a time
    pairs: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.pairs = self.options.pairs or surgery.pairs(self.sd.cfg.unet, self.cfg.unet)
        self.check_pairs()
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = DTYPES[self.options.teacher_dtype]
        self.teacher = self.sd.unet.requires_grad_(False)
        self.teacher.to(self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        quicken(self.teacher)                     # now, so that it rounds no otherwise after a preview than before
        self.objective = Objective(self.cfg.noise, self.cfg.prediction)
        self.empty = self.words("")

    def check_pairs(self) -> None:
        """Paired sites must exist and have one shape."""
        size = self.cfg.size // self.cfg.vae.factor
        mine, theirs = (unet_sites(cfg.unet, size, size) for cfg in (self.cfg, self.sd.cfg))
        wrong = [f"{a} {mine.get(a, 'is none')} and {b} {theirs.get(b, 'is none')}" for a, b in self.pairs.items()
                 if a not in mine or b not in theirs or mine[a] != theirs[b]]
        if wrong:
            raise MinisdError("sites that cannot be compared", "pairs", "; ".join(wrong)[:300],
                              f"pair sites of one shape: {', '.join(theirs)[:200]}", USAGE)

    def trained(self) -> nn.Module:
        return self.student

    # --- the loss ---

    def loss(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        asked = self.ask(batch, draws, self.options.empty_captions, self.options.random_captions)
        terms, _ = self.compared(asked, self.options.terms())
        return {name: self.options.weight(name, step, self.steps) * value for name, value in terms.items()}

    def ask(self, batch: Batch, draws: Draws, empty: float, random: float | None) -> Asked:
        """Noise a batch to random levels; some captions are left out, or others are put in their place."""
        assert batch.latents is not None
        shape = batch.latents.mean.shape[1:]
        posterior = type(batch.latents)(*(part.to(draws.device) for part in batch.latents))
        x0 = self.cfg.latent_scale * posterior.sample(draws.normal(*shape))
        noise, t = draws.normal(*shape), self.objective.timesteps(draws.uniform())
        question = self.objective.question(x0, noise, t)
        paired = torch.ones_like(t, dtype=torch.bool)
        captions = list(batch.captions)
        if random is not None:
            paired, captions = self.other_captions(captions, t, random, draws)
        dropped = draws.uniform() < empty
        states = [self.empty if none else self.words(caption)
                  for none, caption in zip(dropped.tolist(), captions, strict=True)]
        hidden, pooled = (torch.stack(each).to(draws.device) for each in zip(*states, strict=True))
        return Asked(question, hidden, pooled if self.cfg.pooled_label else None, paired)

    def other_captions(self, captions: list[str], t: Tensor, rate: float, draws: Draws) -> tuple[Tensor, list[str]]:
        """Random Conditioning (arXiv 2504.02011, section 4.2): with probability exp(-rate (1 - t / T)) a caption is
        any of the data's, since the noisier the latents are, the less they say of their own."""
        probability = torch.exp(-rate * (1 - t / self.cfg.noise.steps))
        other = draws.uniform() < probability
        places = (draws.uniform() * len(self.data.captions)).long().tolist()
        chosen = [self.data.captions[place] if swap else caption
                  for swap, place, caption in zip(other.tolist(), places, captions, strict=True)]
        return ~other, chosen

    def compared(self, asked: Asked, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The named terms, unweighted, and the relative error of the features of every pair; all float32 means."""
        q = asked.question
        mine, theirs = Sites(keep=tuple(self.pairs)), Sites(keep=tuple(self.pairs.values()))
        out = self.student(q.x.contiguous(memory_format=torch.channels_last), q.t, asked.hidden, asked.label, mine)
        terms: dict[str, Tensor] = {}
        relative: dict[str, Tensor] = {}
        if "noise" in names:                       # of a picture that was given other words, the noise is no target
            terms["noise"] = error(out, q.target, q.weight * asked.paired)
        if "output" in names or "features" in names:
            answer = self.answer(asked, theirs)
        if "output" in names:
            terms["output"] = F.mse_loss(out.float(), answer.float())
        if "features" in names:
            errors = {a: F.mse_loss(mine.kept[a].float(), theirs.kept[b].float()) for a, b in self.pairs.items()}
            relative = {a: errors[a] / theirs.kept[b].float().square().mean() for a, b in self.pairs.items()}
            each = relative if self.options.normalised else errors
            terms["features"] = torch.stack(list(each.values())).sum()
        return terms, relative

    @torch.no_grad()
    def answer(self, asked: Asked, sites: Sites) -> Tensor:
        """The teacher's, in its own precision."""
        x, label = asked.question.x, asked.label
        with torch.autocast(x.device.type, enabled=False):
            return self.teacher(x.to(self.dtype, memory_format=torch.channels_last), asked.question.t,
                                asked.hidden.to(self.dtype), None if label is None else label.to(self.dtype), sites)

    # --- how well it does ---

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """A sheet of teacher, untrained student and student from the same noise, and errors on held-out samples."""
        if self.shown.prompts:
            columns = {"teacher": lambda: self.draw(self.teacher), "untrained": self.draw_untrained}
            drawn = [drawn_once(folder / REFERENCES / f"{name}.png", draw) for name, draw in columns.items()]
            drawn.append(self.draw(self.student))
            side_by_side(self.shown.prompts, drawn, step).save(folder / f"{step:07d}.png")
        return self.measure()

    def draw(self, unet: UNet) -> list[Image.Image]:
        """The recipe's prompts, in the precision that a user of this machine gets, or the network's own."""
        shown, device = self.shown, self.sd.device
        lowered = torch.bfloat16 in (pick_dtype("auto", device), unet.conv_in.weight.dtype)
        with torch.autocast(device.type, torch.bfloat16, lowered):
            return replace(self.sd, cfg=replace(self.cfg, unet=unet.cfg), unet=unet).txt2img(
                shown.prompts, steps=shown.steps, cfg=shown.guidance, sampler=shown.sampler, seed=shown.seed,
                batch=TOGETHER)

    def draw_untrained(self) -> list[Image.Image]:
        return self.draw(surgery.transplant(self.teacher, self.cfg.unet).requires_grad_(False))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Means over held-out samples whose noise and timesteps are the same every time, by the student in the
        precision of its weights: the three errors, and the relative error of each pair's features."""
        count = min(MEASURED, len(self.held_out.captions))
        sums: dict[str, float] = {}
        lowered = self.student.conv_in.weight.dtype == torch.bfloat16
        for start in range(0, count, self.batch):
            numbers = list(range(start, min(start + self.batch, count)))
            draws = Draws(self.seed, numbers, self.sd.device)
            with torch.autocast(self.sd.device.type, torch.bfloat16, lowered):
                terms, relative = self.compared(self.ask(self.held_out.batch(numbers), draws, 0.0, None),
                                                ("noise", "output", "features"))
            found = {f"held_out/{name}": value for name, value in terms.items()}
            for name, value in (found | {f"feature/{site}": value for site, value in relative.items()}).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(numbers)
        return {name: value / count for name, value in sums.items()}

    def export(self, folder: Path) -> None:
        """The student with the teacher's other parts: a whole model, as the teacher likes to be drawn with."""
        save_whole(folder, replace(self.sd, cfg=self.cfg, unet=self.student))
