"""What each removable block of a UNet is worth: what it saves to leave it out alone, untrained, and what it costs.

The proposal for a budget adds up the errors of single cuts, in the manner of LAPTOP-Diff's one-shot criterion (Zhang et
al., arXiv 2404.11098, section 3.2), where the error of several cuts was found to be about the sum of theirs.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minisd import store, surgery
from minisd.config import UNetConfig
from minisd.errors import USAGE, MinisdError
from minisd.evaluate.protocol import protocol_hash
from minisd.evaluate.questions import BANDS, Questions, questions, squared
from minisd.unet import UNet

ROUNDS = 5                                        # calls that are timed, of which the fastest counts


@dataclass(frozen=True)
class Cut:
    """A student with one cut: its size, one call of it, and its error against the teacher, whole and by bands."""

    name: str
    parameters: int
    macs: int                                     # of one call for one picture
    milliseconds: float
    error: float                                  # mean squared, of what the network predicts
    bands: tuple[float, ...]                      # from the least noisy timesteps to the noisiest


@dataclass(frozen=True)
class Survey:
    """The teacher, every cut of it alone, and how that was measured."""

    teacher: Cut                                  # named so, and without error
    cuts: tuple[Cut, ...]
    cfg: UNetConfig
    protocol: dict[str, Any]


def survey(teacher: str, data: Path, samples: int, cache: Path) -> Survey:
    """Measure every cut of a teacher on held-out pictures, in float32 on the CPU."""
    if samples < BANDS:
        raise MinisdError(f"--samples {samples}", remedy=f"give at least {BANDS}, one for each band", code=USAGE)
    sd = store.load(teacher, "cpu", "float32")
    asked = questions(sd, data, samples, cache)
    answer = asked.ask(sd.unet)
    whole = measured("teacher", sd.unet, asked, answer)
    cuts = []
    for name in surgery.cuts(sd.unet.cfg):
        student = surgery.transplant(sd.unet, surgery.student(sd.unet.cfg, [name])).requires_grad_(False)
        cuts.append(measured(name, student, asked, answer))
    protocol = {**asked.protocol(), "teacher": store.fingerprint(store.find(teacher))[:16], "dtype": "float32",
                "timing": f"fastest of {ROUNDS} calls for one picture, {torch.get_num_threads()} threads"}
    return Survey(whole, tuple(cuts), sd.unet.cfg, protocol)


def measured(name: str, unet: UNet, asked: Questions, answer: Tensor) -> Cut:
    errors, bands = squared(asked.ask(unet), answer).double(), asked.bands
    return Cut(name, parameters(unet.cfg), macs(unet.cfg, asked.x.shape[2:]), milliseconds(unet, asked),
               errors.mean().item(), tuple(errors[bands == band].mean().item() for band in range(BANDS)))


def parameters(cfg: UNetConfig) -> int:
    with torch.device("meta"), store.Blank():
        return sum(p.numel() for p in UNet(cfg).parameters())


def macs(cfg: UNetConfig, size: tuple[int, ...]) -> int:
    """Multiplications of one call for one picture, as the shapes say; a window of 77 tokens of text."""
    with torch.device("meta"), store.Blank(), sdpa_kernel(SDPBackend.MATH):
        unet = UNet(cfg)
        label = torch.empty(1, cfg.label_dim) if cfg.label_dim else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(torch.empty(1, cfg.in_channels, *size), torch.empty(1), torch.empty(1, 77, cfg.context_dim), label)
    return counter.get_total_flops() // 2


@torch.no_grad()
def milliseconds(unet: UNet, asked: Questions) -> float:
    """The fastest of some calls for one picture."""
    x, t, hidden, label = (None if part is None else part[:1] for part in next(asked.batches()))
    took = []
    for _ in range(ROUNDS + 1):                   # the first warms up
        start = time.perf_counter()
        unet(x, t, hidden, label)
        took.append(time.perf_counter() - start)
    return 1000 * min(took[1:])


def table(found: Survey) -> str:
    """A row for every cut, the cheapest error first."""
    head = ("cut", "parameters", "saved", "GMACs", "saved", "ms", "error",
            *(f"{place}. quarter of t" for place in range(1, BANDS + 1)))
    rows = [head, row(found.teacher, found.teacher)]
    rows += [row(cut, found.teacher) for cut in sorted(found.cuts, key=lambda cut: cut.error)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in rows]
    return "\n".join([*lines, f"protocol {protocol_hash(found.protocol)}: {found.protocol}"])


def row(cut: Cut, whole: Cut) -> tuple[str, ...]:
    return (cut.name, f"{cut.parameters:,}", f"{100 * (1 - cut.parameters / whole.parameters):.1f} %",
            f"{cut.macs / 1e9:.3f}", f"{100 * (1 - cut.macs / whole.macs):.1f} %", f"{cut.milliseconds:.1f}",
            f"{cut.error:.3g}", *(f"{error:.3g}" for error in cut.bands))


def propose(found: Survey, budget: float) -> str:
    """The cuts whose errors add up to the least and that leave at most this share of the parameters, as a recipe has
    them."""
    allowed = budget * found.teacher.parameters
    for error, names in candidates(found, allowed):
        left = parameters(surgery.student(found.cfg, names))
        if left <= allowed:
            return (f"remove = {list(names)}".replace("'", '"') + f"  # {left:,} parameters "
                    f"({100 * left / found.teacher.parameters:.1f} %), errors of the single cuts add up to {error:.3g}")
    raise MinisdError(f"--budget {budget}: no set of single cuts leaves so little",
                      why=f"the cuts are {', '.join(cut.name for cut in found.cuts)}", remedy="give more", code=USAGE)


def candidates(found: Survey, allowed: float) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Sets of cuts that can be made together and might fit, by the sum of their errors. Cuts overlap, so that together
    they save at most the sum of what they save alone."""
    saved = {cut.name: found.teacher.parameters - cut.parameters for cut in found.cuts}
    needed = found.teacher.parameters - allowed
    sets = [chosen for size in range(1, len(found.cuts) + 1) for chosen in combinations(found.cuts, size)
            if sum(saved[cut.name] for cut in chosen) >= needed]
    for chosen in sorted(sets, key=lambda chosen: sum(cut.error for cut in chosen)):
        names = tuple(cut.name for cut in chosen)
        if possible(found.cfg, names):
            yield sum(cut.error for cut in chosen), names


def possible(cfg: UNetConfig, names: tuple[str, ...]) -> bool:
    try:
        surgery.student(cfg, names)
    except MinisdError:
        return False
    return True
