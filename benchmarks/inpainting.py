"""Masks drawn anew by the embedded model: `python benchmarks/inpainting.py` makes the picture in the README.

It prints, for every picture, how many pixels lie outside the mask and how many of them have changed, which is none;
if it ever were any, the exit code would be 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

import minisd
from minisd.labels import table
from minisd.pipeline import StableDiffusion

RESULT = Path(__file__).parent / "results" / "inpainting.png"
FEATHER = 6                                       # of the last column
GREY = (160, 160, 160)


class Row(NamedTuple):
    """What is drawn first, which part of it is masked, and what is drawn there."""

    before: str
    seed: int
    mask: tuple[int, int, int, int]               # left, top, right, bottom
    after: str


ROWS = (
    Row("an umbrella, 3d", 0, (0, 0, 128, 71), "a mushroom, 3d"),
    Row("a dog, 3d", 0, (0, 0, 72, 80), "a cat, 3d"),
    Row("a red apple, 3d", 7, (64, 0, 128, 128), "a green apple, 3d"),
    Row("a smile, 3d", 0, (8, 24, 120, 72), "a cool face, 3d"),
)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT, help="the picture to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="steps of each walk (default: the model's own)")
    options = parser.parse_args(args)
    sd = minisd.load("emoji", device="cpu", dtype="float32")
    drawn = [drawn_row(sd, row, options.steps) for row in ROWS]
    changes = [changed_outside(row, pictures[0], pictures[2]) for row, pictures in zip(ROWS, drawn, strict=True)]
    print("| before | masked part drawn as | pixels outside the mask | changed |\n|---|---|---:|---:|")
    for row, (outside, changed) in zip(ROWS, changes, strict=True):
        print(f"| {row.before} | {row.after} | {outside:,} | {changed} |")
    table(drawn, ["before", "masked", "after", f"feather {FEATHER}"], [row.after for row in ROWS]).save(options.out)
    return int(any(changed for _, changed in changes))


def drawn_row(sd: StableDiffusion, row: Row, steps: int | None) -> list[Image.Image]:
    """Before, what is masked in grey, after, and after with a feather."""
    before, = sd.txt2img(row.before, seed=row.seed, steps=steps)
    mask = mask_of(row, before.size)
    after = [sd.inpaint(row.after, before, mask, seed=row.seed, steps=steps, feather=feather)[0]
             for feather in (0, FEATHER)]
    return [before, Image.composite(Image.new("RGB", before.size, GREY), before, mask), *after]


def mask_of(row: Row, size: tuple[int, int]) -> Image.Image:
    """Black, and white where it is drawn anew."""
    mask = Image.new("L", size)
    left, top, right, bottom = row.mask
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


def changed_outside(row: Row, before: Image.Image, after: Image.Image) -> tuple[int, int]:
    """Pixels outside the mask, and how many of them differ in any byte."""
    outside = np.asarray(mask_of(row, before.size)) == 0
    differs = (np.asarray(before) != np.asarray(after)).any(axis=2)
    return int(outside.sum()), int((differs & outside).sum())


if __name__ == "__main__":
    sys.exit(main())
