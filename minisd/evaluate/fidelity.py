"""How near a student is to its teacher, beside the same student untrained: every comparison is paired.

Error of the predicted noise (or v) by bands of timesteps, likeness of the features at paired sites, structural
similarity of pictures drawn from the same noise; and the share of what the surgery cost that training has won back.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisd import __version__, store, surgery
from minisd.errors import USAGE, MinisdError
from minisd.evaluate.figure import Figure, mean
from minisd.evaluate.protocol import protocol_hash
from minisd.evaluate.questions import BANDS, Questions, questions, squared
from minisd.evaluate.similarity import ssim
from minisd.files import put
from minisd.images import to_tensor
from minisd.pipeline import StableDiffusion
from minisd.train.captions import captions_of
from minisd.train.config import DataConfig
from minisd.unet import UNet

RESAMPLES, LEVEL, SEED = 2000, 0.95, 0
BATCH = 8                                         # pictures drawn together
UNTRAINED, STUDENT, WON = "untrained", "student", "won back"


@dataclass(frozen=True)
class Inspected:
    """A network beside its teacher, sample by sample."""

    error: Tensor                                 # [n] mean squared difference of the answers
    loss: Tensor                                  # [n] mean squared error against the true noise
    features: dict[str, Tensor]                   # site -> [n] squared difference over the teacher's square


@dataclass(frozen=True)
class Fidelity:
    """Figures, and the protocol that gives them again."""

    figures: tuple[Figure, ...]
    protocol: dict[str, Any]


def fidelity(teacher: str, student: str, data: Path, samples: int, pictures: int, cache: Path) -> Fidelity:
    """Compare two models of one family, the second's UNet being a part of the first's; in float32 on the CPU."""
    if samples < 2 * BANDS or pictures == 1:
        raise MinisdError(f"--samples {samples} --pictures {pictures}", "", "an interval takes several of each",
                          f"give at least {2 * BANDS} and 2", USAGE)
    whole, left = (store.load(source, "cpu", "float32") for source in (teacher, student))
    untrained = surgery.transplant(whole.unet, left.unet.cfg).requires_grad_(False)
    asked = questions(whole, data, samples, cache, SEED)
    before, after, perfect = (inspect(whole.unet, unet, asked) for unet in (untrained, left.unet, whole.unet))
    figures = [*errors(before, after, asked.bands), *losses(perfect, before, after), *likeness(before, after)]
    protocol = {"minisd": __version__, "teacher": whole.name, "student": left.name, "dtype": "float32",
                "teacher_sha256": store.fingerprint(store.find(teacher)), **asked.protocol(), "seed": SEED,
                "interval": f"{LEVEL}, {RESAMPLES} paired resamples for ratios"}
    if pictures:
        found, how = drawn_alike(whole, {UNTRAINED: untrained, STUDENT: left.unet}, data, pictures)
        figures += found
        protocol |= how
    without = {name: value for name, value in protocol.items() if name not in ("student", "minisd")}
    return Fidelity(tuple(figures), protocol | {"student_sha256": store.fingerprint(store.find(student)),
                                                "protocol": protocol_hash(without)})


def inspect(teacher: UNet, unet: UNet, asked: Questions) -> Inspected:
    pairs = surgery.pairs(teacher.cfg, unet.cfg)
    found: dict[str, list[Tensor]] = {name: [] for name in ("error", "loss", *pairs)}
    mine, theirs = asked.features(unet, tuple(pairs)), asked.features(teacher, tuple(pairs.values()))
    targets = asked.target.split(len(next(asked.batches())[1]))
    for (out, kept), (answer, wanted), target in zip(mine, theirs, targets, strict=True):
        found["error"].append(squared(out, answer))
        found["loss"].append(squared(out, target))
        for a, b in pairs.items():
            found[a].append(squared(kept[a], wanted[b]) / wanted[b].float().square().flatten(1).mean(dim=1))
    whole = {name: torch.cat(parts) for name, parts in found.items()}
    return Inspected(whole.pop("error"), whole.pop("loss"), whole)


def errors(before: Inspected, after: Inspected, bands: Tensor) -> list[Figure]:
    """Mean squared error against the teacher's answers, all and by bands, and the share of it that was won back."""
    chosen = {"all timesteps": torch.ones_like(bands, dtype=torch.bool),
              **{f"{band + 1}. quarter of t": bands == band for band in range(BANDS)}}
    figures = []
    for name, those in chosen.items():
        measure = f"error against the teacher, {name}"
        figures += [mean(measure, UNTRAINED, before.error[those]), mean(measure, STUDENT, after.error[those]),
                    won_back(measure, before.error[those], after.error[those])]
    return figures


def losses(perfect: Inspected, before: Inspected, after: Inspected) -> list[Figure]:
    """How much more than the teacher each errs about the noise itself, paired by sample."""
    measure = "error of the noise above the teacher's"
    return [mean("error of the noise", "teacher", perfect.loss),
            *(mean(measure, name, one.loss - perfect.loss) for name, one in ((UNTRAINED, before), (STUDENT, after)))]


def likeness(before: Inspected, after: Inspected) -> list[Figure]:
    return [mean(f"relative error of features, {site}", name, one.features[site])
            for site in after.features for name, one in ((UNTRAINED, before), (STUDENT, after))]


def won_back(measure: str, before: Tensor, after: Tensor) -> Figure:
    """1 - error after / error before, with the interval of paired resamples (bootstrap by percentiles)."""
    def share(rows: Tensor) -> Tensor:
        return 1 - after.double()[rows].mean(dim=-1) / before.double()[rows].mean(dim=-1)

    return Figure(measure, WON, share(torch.arange(len(before))).item(), len(before), resampled(share, len(before)))


def resampled(statistic: Callable[[Tensor], Tensor], n: int) -> tuple[float, float]:
    """The interval in which a statistic of n rows lies when they are drawn anew with replacement."""
    rows = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(SEED))
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(statistic(rows), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def drawn_alike(sd: StableDiffusion, students: dict[str, UNet], data: Path,
                count: int) -> tuple[list[Figure], dict[str, Any]]:
    """Structural similarity to the teacher's picture of the same prompt and seed."""
    prompts = prompts_of(data, count)
    real = draw(sd, sd.unet, prompts)
    alike = {name: ssim(draw(sd, unet, prompts), real) for name, unet in students.items()}
    figures = [mean("SSIM with the teacher's pictures", name, values) for name, values in alike.items()]
    gain = alike[STUDENT] - alike[UNTRAINED]
    figures.append(mean("SSIM with the teacher's pictures", "student minus untrained", gain))
    return figures, {"pictures": count, "prompts": protocol_hash({"prompts": prompts}), "drawing": asdict(sd.defaults)}


def prompts_of(data: Path, count: int) -> list[str]:
    """Captions of held-out pictures, the others following where there are too few, and then all again."""
    train, held_out = captions_of(data, DataConfig())
    return list(islice(cycle(dict.fromkeys((*held_out, *train))), count))


def draw(sd: StableDiffusion, unet: UNet, prompts: Sequence[str]) -> Tensor:
    """[n, 3, h, w]; picture n has seed n."""
    model = replace(sd, unet=unet, cfg=replace(sd.cfg, unet=unet.cfg))
    drawings = [model.drawing(prompt, seed=n) for n, prompt in enumerate(prompts)]
    groups = model.batches(drawings, BATCH)
    return torch.stack([to_tensor(picture) for group in groups for picture in model.draw(group)])


def write(found: Fidelity, path: Path) -> None:
    put(path, json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")
