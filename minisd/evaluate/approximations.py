"""Approximations beside exact pictures of the same prompts and seeds: time saved, likeness lost, fit to the words."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minisd import __version__, labels
from minisd.drawing.plan import Drawing
from minisd.evaluate.approximations_options import SHEET, TABLE, WAYS, ApproximationsOptions, Way
from minisd.evaluate.clip_score import Judge, clip_score, cosine, load_judge
from minisd.evaluate.figure import Figure, mean
from minisd.evaluate.protocol import protocol_hash
from minisd.evaluate.similarity import psnr, ssim
from minisd.fast.clock import Clock
from minisd.files import put
from minisd.images import to_tensor
from minisd.models import name_of
from minisd.pipeline import StableDiffusion
from minisd.png import png
from minisd.store import find, fingerprint, load

EXACT = Way("exact")
NETWORKS = ("UNet", "Outermost")                  # what the clock calls a UNet, and the part of it that always runs
SHOWN = ("UNet seconds", "times as fast", "SSIM", "PSNR, dB", "CLIP cosine", "CLIP score", "CLIP score, change")


@dataclass(frozen=True)
class Drawn:
    """The pictures of one way, and for each batch the UNet's seconds per picture."""

    pictures: list[Image.Image]
    seconds: list[float]

    @property
    def pixels(self) -> Tensor:  # [n, 3, h, w]
        return torch.stack([to_tensor(picture) for picture in self.pictures])


@dataclass(frozen=True)
class Row:
    """What one way costs and gives: figures by name, each with its interval where it has one."""

    way: str
    figures: dict[str, Figure]


def compare(options: ApproximationsOptions) -> tuple[list[Row], dict[str, Any]]:
    """Every way, the exact one first; and how it was done. Both are written."""
    folder = find(options.model)
    judge = load_judge(find(options.judge or options.model), "cpu")
    models = {way.dtype: load(folder, options.device, way.dtype) for way in WAYS}
    drawings = drawings_of(models[EXACT.dtype], options)
    found = draw(models, drawings, options.batch)
    protocol = protocol_of(models, judge, drawings, options) | {"model_sha256": fingerprint(folder)}
    exact = found[EXACT.name]
    rows = [row_of(name, drawn, exact, judge, [one.prompt for one in drawings]) for name, drawn in found.items()]
    protocol |= {"protocol": protocol_hash(protocol), "minisd": __version__, "torch": torch.__version__,
                 "threads": torch.get_num_threads()}
    write(options.out, rows, protocol, sheet(found, options.prompts, options.count))
    return rows, protocol


def drawings_of(sd: StableDiffusion, options: ApproximationsOptions) -> list[Drawing]:
    return [sd.drawing(prompt, "", options.steps, options.cfg, options.sampler, options.seed + n)
            for prompt in options.prompts for n in range(options.count)]


def draw(models: dict[str, StableDiffusion], drawings: Sequence[Drawing], batch: int) -> dict[str, Drawn]:
    """All drawings in all ways, batch by batch, each way coming first in turn: the machine's pace is everyone's."""
    ways = (EXACT, *WAYS)
    found = {way.name: Drawn([], []) for way in ways}
    groups = list(models[EXACT.dtype].batches(drawings, batch))
    for sd in models.values():                    # else the first batch would pay for what is done once
        sd.draw([replace(one, steps=2) for one in groups[0]])
    for turn, group in enumerate(tqdm(groups, unit="batch")):
        for way in ways[turn % len(ways):] + ways[:turn % len(ways)]:
            with Clock() as clock:
                found[way.name].pictures.extend(models[way.dtype].draw([as_drawn(way, one) for one in group]))
            spent = sum(row.seconds for row in clock.rows() if row.network in NETWORKS and not row.kind)
            found[way.name].seconds.append(spent / len(group))
    return found


def as_drawn(way: Way, drawing: Drawing) -> Drawing:
    return replace(drawing, shortcuts=way.shortcuts, guide=way.guide)


def row_of(name: str, drawn: Drawn, exact: Drawn, judge: Judge, prompts: list[str]) -> Row:
    """The measures of one way; likeness to the exact pictures is said of the others alone."""
    ours, theirs = judge.pictures(drawn.pixels), judge.pictures(exact.pixels)
    words = judge.captions(prompts)
    scores, before = (clip_score(cosine(pictures, words)) for pictures in (ours, theirs))
    figures = [Figure("UNet seconds", name, median(drawn.seconds), len(prompts)), mean("CLIP score", name, scores)]
    if name != EXACT.name:
        noisy = psnr(drawn.pixels, exact.pixels)
        ratios = [a / b for a, b in zip(exact.seconds, drawn.seconds, strict=True)]
        figures += [Figure("times as fast", name, median(ratios), len(prompts)),
                    mean("SSIM", name, ssim(drawn.pixels, exact.pixels)),
                    mean("CLIP cosine", name, cosine(ours, theirs)),
                    mean("CLIP score, change", name, scores - before)]
        # That of equal pictures is infinite.
        figures += [mean("PSNR, dB", name, noisy[noisy.isfinite()])] if noisy.isfinite().sum() > 1 else []
    return Row(name, {figure.measure: figure for figure in figures})


def protocol_of(models: dict[str, StableDiffusion], judge: Judge, drawings: Sequence[Drawing],
                options: ApproximationsOptions) -> dict[str, Any]:
    """What the figures follow from, but for the machine's pace."""
    sd = models[EXACT.dtype]
    return {"model": sd.name, "judge": judge.name, "judge_sha256": judge.sha256, "prompts": options.prompts,
            "count": options.count, "seed": options.seed, "batch": options.batch, "steps": drawings[0].steps,
            "guidance": drawings[0].guidance, "sampler": drawings[0].sampler,
            "size": f"{drawings[0].width}x{drawings[0].height}", "device": sd.device.type,
            "ways": [asdict(way) | {"computes_in": name_of(models[way.dtype].dtype)} for way in (EXACT, *WAYS)]}


def lines(rows: Sequence[Row]) -> str:
    """The table for a reader."""
    shown: list[tuple[str, ...]] = [("", *SHOWN)]
    shown += [(row.way, *(said(row.figures.get(measure)) for measure in SHOWN)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in shown)


def said(figure: Figure | None) -> str:
    """The value, and half the width of its interval."""
    if figure is None:
        return ""
    value = f"{figure.value:.1f}" if figure.value >= 10 else f"{figure.value:.3f}"
    return value if figure.interval is None else f"{value} ± {(figure.interval[1] - figure.interval[0]) / 2:.2g}"


def sheet(found: dict[str, Drawn], prompts: Sequence[str], count: int) -> Image.Image:
    """The first picture of each prompt in every way."""
    rows = [[drawn.pictures[n * count] for drawn in found.values()] for n in range(len(prompts))]
    return labels.table(rows, list(found), list(prompts))


def write(folder: Path, rows: Sequence[Row], protocol: dict[str, Any], pictures: Image.Image) -> None:
    """The table and the sheet, each whole or not at all."""
    table = json.dumps({"protocol": protocol, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    put(folder / SHEET, png(pictures, small=True))
    put(folder / TABLE, table + "\n")
