"""Samplers side by side: the likeness of their pictures to converged ones, against calls of the network and time."""

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from minisd import __version__
from minisd.evaluate.curves import Panel, curves
from minisd.evaluate.samplers_brisque import Brisque
from minisd.evaluate.samplers_options import CSV, CURVES, TABLE, SamplersOptions
from minisd.evaluate.similarity import psnr, ssim
from minisd.files import put
from minisd.images import to_tensor
from minisd.pipeline import StableDiffusion
from minisd.png import png
from minisd.samplers.info import adds_noise
from minisd.samplers.recipes import sampler
from minisd.store import find, fingerprint, load

EULER = ("euler", 40)                             # the picture that sampler comparisons are customarily held against


@dataclass(frozen=True)
class Row:
    """One sampler at one number of steps; means over the prompts. None is what cannot be said."""

    sampler: str
    steps: int
    calls: int                                    # of the network, per picture; a guided one is one call, too
    seconds: float                                # per picture, decoding included
    ssim_converged: float | None                  # to the picture that the method converges to; None: to none
    psnr_converged: float | None                  # the same in dB
    ssim_euler: float                             # to Euler's at 40 steps, from the same noise
    brisque: float | None


class Contest:
    """Draws every picture once, and measures it against those it is compared with."""

    def __init__(self, sd: StableDiffusion, options: SamplersOptions) -> None:
        self.sd, self.options, self.brisque = sd, options, Brisque()
        self._drawn: dict[tuple[str, int], tuple[list[Image.Image], float]] = {}

    def row(self, name: str, steps: int) -> Row:
        recipe = sampler(name)
        pictures, seconds = self._pictures(recipe.name, steps)
        limit = self._limit(recipe.name)
        return Row(recipe.name, steps, recipe.calls(self.sd.cfg.noise, steps), seconds,
                   None if limit is None else ssim(_stack(pictures), limit).mean().item(),
                   None if limit is None else _finite(psnr(_stack(pictures), limit).mean().item()),
                   ssim(_stack(pictures), _stack(self._pictures(*EULER)[0])).mean().item(),
                   self.brisque.mean(pictures))

    def _limit(self, name: str) -> torch.Tensor | None:
        """Methods without noise all solve one equation; on a Brownian path each converges by itself; on fresh noise
        every number of steps is another picture."""
        recipe = sampler(name)
        if not adds_noise(recipe):
            return _stack(self._pictures(sampler(self.options.reference).name, self.options.reference_steps)[0])
        if recipe.noise == "brownian":
            return _stack(self._pictures(name, self.options.reference_steps)[0])
        return None

    def _pictures(self, name: str, steps: int) -> tuple[list[Image.Image], float]:
        """All prompts with a sampler, and seconds per picture."""
        if (name, steps) not in self._drawn:
            prompts, options = self.options.prompts, self.options
            drawings = [self.sd.drawing(prompt, "", steps, options.cfg, name, options.seed + n)
                        for n, prompt in enumerate(prompts)]
            start = time.perf_counter()
            pictures = [picture for group in self.sd.batches(drawings, len(prompts)) for picture in self.sd.draw(group)]
            self._drawn[name, steps] = pictures, (time.perf_counter() - start) / len(prompts)
        return self._drawn[name, steps]


def compare(options: SamplersOptions) -> list[Row]:
    """Every sampler at every number of steps; what is done is written after each sampler."""
    folder = find(options.model)
    sd = load(folder, options.device, options.dtype)
    contest, rows = Contest(sd, options), list[Row]()
    protocol = {"minisd": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
                "model": sd.name, "model_sha256": fingerprint(folder), "prompts": options.prompts,
                "seed": options.seed, "guidance": sd.defaults.guidance if options.cfg is None else options.cfg,
                "reference": sampler(options.reference).name, "reference_steps": options.reference_steps,
                "device": sd.device.type, "dtype": str(sd.dtype).removeprefix("torch."),
                "brisque": contest.brisque.absent or "regressor of the package brisque"}
    sd.txt2img(options.prompts, steps=1)          # else the first sampler would pay for what is done once
    for name in tqdm(options.samplers, unit="sampler"):
        rows += [contest.row(name, steps) for steps in sorted(options.steps)]
        write(options.out, rows, protocol)
    return rows


def write(folder: Path, rows: Sequence[Row], protocol: dict[str, Any]) -> None:
    """The table as JSON and CSV and the curves as PNG, each whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    table = json.dumps({"protocol": protocol, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    put(folder / CURVES, png(plot(rows)))
    put(folder / CSV, text.getvalue())
    put(folder / TABLE, table + "\n")


def plot(rows: Sequence[Row]) -> Image.Image:
    """SSIM to the converged picture and to Euler's, and BRISQUE where it is known, over calls of the network."""
    panels = (("SSIM to the converged picture", "ssim_converged", 1.0),
              ("SSIM to Euler's at 40 steps", "ssim_euler", 1.0), ("BRISQUE (less is better)", "brisque", None))
    names = list(dict.fromkeys(row.sampler for row in rows))
    return curves([Panel(title, "calls of the network", {name: _curve(rows, name, measure) for name in names}, limit)
                   for title, measure, limit in panels])


def _curve(rows: Sequence[Row], name: str, measure: str) -> list[tuple[float, float]]:
    found = [(row.calls, asdict(row)[measure]) for row in rows if row.sampler == name]
    return [(calls, value) for calls, value in found if value is not None]


def lines(rows: Sequence[Row]) -> str:
    """The table for a reader."""
    shown = [("sampler", "steps", "calls", "seconds", "SSIM converged", "SSIM Euler 40", "BRISQUE")]
    shown += [(row.sampler, str(row.steps), str(row.calls), f"{row.seconds:.2f}", _shown(row.ssim_converged),
               _shown(row.ssim_euler), _shown(row.brisque, 1)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in shown)


def _shown(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _finite(value: float) -> float | None:
    """PSNR of equal pictures is infinite, which JSON cannot say."""
    return value if value < float("inf") else None


def _stack(pictures: Sequence[Image.Image]) -> torch.Tensor:
    return torch.stack([to_tensor(picture) for picture in pictures])
