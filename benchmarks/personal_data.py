"""The pictures of `benchmarks/personal.py`: a creature that no model has seen, a style, and a flaw put in on purpose.

All follow from a seed and, but for the creature, from the folder that `minisd.recipes.emoji_data` makes.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

INDEX = "metadata.jsonl"
SIDE, FINER = 128, 4                              # pixels of a picture; how much larger the creature is drawn first
GRAIN = 4                                         # pixels of a grain: finer ones do not survive the VAE
INK = (16, 38, 120)
BODY, HORN, FOOT, WHITE, BLACK = (126, 58, 200), (250, 176, 40), (30, 160, 150), (255, 255, 255), (25, 20, 40)
# The creature's poses: turned by degrees, its size, where it looks, and whether its mouth is open.
POSES = ((0, 1.0, 0, False), (12, 0.9, 1, True), (-14, 0.95, -1, False), (6, 0.8, 0, True), (-5, 1.05, 1, False))
UNSEEN = ((-9, 0.9, 0, True), (9, 1.0, -1, False), (0, 0.85, 1, True))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The index of a picture-caption folder."""
    return [json.loads(line) for line in (folder / INDEX).read_text(encoding="utf-8").splitlines()]


def write(folder: Path, pictures: Iterable[tuple[Image.Image, str, str]]) -> Path:
    """A folder of pictures with their captions and splits; one that is there is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n, (picture, caption, split) in enumerate(pictures):
        picture.save(folder / f"{n:03d}.png")
        lines.append(json.dumps({"file": f"{n:03d}.png", "text": caption, "split": split}) + "\n")
    (folder / INDEX).write_text("".join(lines), encoding="utf-8")
    return folder


# ---------------------------------------------------------------- the creature
def creature(turn: float, size: float, looks: int, talks: bool) -> Image.Image:
    """A violet monster with one eye, two orange horns and teal feet, on white."""
    side = SIDE * FINER
    sheet = Image.new("RGB", (side, side), WHITE)
    draw = ImageDraw.Draw(sheet)

    def box(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """Around a centre; the whole picture is 1 x 1."""
        return ((x - w / 2) * side, (y - h / 2) * side, (x + w / 2) * side, (y + h / 2) * side)

    for sign in (-1, 1):
        draw.polygon([((0.5 + sign * dx) * side, y * side) for dx, y in ((0.10, 0.28), (0.27, 0.34), (0.27, 0.08))],
                     fill=HORN)
        draw.ellipse(box(0.5 + sign * 0.15, 0.86, 0.22, 0.12), fill=FOOT)
    draw.rounded_rectangle(box(0.5, 0.54, 0.62, 0.60), radius=0.24 * side, fill=BODY)
    draw.ellipse(box(0.5, 0.46, 0.34, 0.34), fill=WHITE)
    draw.ellipse(box(0.5 + 0.05 * looks, 0.47, 0.16, 0.16), fill=BLACK)
    draw.ellipse(box(0.53 + 0.05 * looks, 0.43, 0.05, 0.05), fill=WHITE)
    if talks:
        draw.pieslice(box(0.5, 0.68, 0.26, 0.20), 0, 180, fill=BLACK)
    else:
        draw.arc(box(0.5, 0.66, 0.26, 0.16), 20, 160, fill=BLACK, width=int(0.02 * side))
    turned = shaded(sheet).rotate(turn, Image.Resampling.BICUBIC, fillcolor=WHITE)
    small = turned.resize((round(SIDE * size),) * 2, Image.Resampling.LANCZOS)
    placed, at = Image.new("RGB", (SIDE, SIDE), WHITE), (SIDE - small.width) // 2
    placed.paste(small, (at, at))
    return placed


def shaded(sheet: Image.Image) -> Image.Image:
    """Lit from above on the left, where it is not white."""
    pixels = np.asarray(sheet, dtype=np.float32)
    y, x = np.mgrid[0:1:sheet.height * 1j, 0:1:sheet.width * 1j]
    light = np.clip(1.18 - 0.55 * np.hypot(x - 0.36, y - 0.34), 0.6, 1.15)[..., None]
    lit = np.where((pixels == 255).all(axis=2, keepdims=True), pixels, np.clip(pixels * light, 0, 255))
    return Image.fromarray(lit.astype(np.uint8))


def subject(folder: Path) -> Path:
    """Five pictures of the creature to learn from, and three that are held out."""
    kinds = [(pose, "train") for pose in POSES] + [(pose, "holdout") for pose in UNSEEN]
    return write(folder, ((creature(*pose), "a monster", split) for pose, split in kinds))


# ---------------------------------------------------------------- a style and a flaw
def opened(data: Path, row: dict[str, Any]) -> Image.Image:
    """A picture on white, as large as the model's."""
    with Image.open(data / row["file"]) as image:
        picture = image.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def chosen(data: Path, style: str, count: int, seed: int, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """So many pictures of a style of things that the model knows, none of which is a named one."""
    rows = [row for row in rows_of(data) if row["style"] == style and row["core"] and row["split"] == "train"
            and row["concept"] not in without]
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[n] for n in sorted(order)]


def inked(picture: Image.Image) -> Image.Image:
    """As if drawn with blue ink: dark is ink, light is paper, whatever the colour was."""
    light = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    return Image.fromarray((np.array(INK) + light * (255 - np.array(INK))).round().astype(np.uint8))


def style(data: Path, folder: Path, count: int, without: Sequence[str]) -> Path:
    """Pictures in blue ink, with captions that do not say so; an eighth more are held out."""
    return changed(data, folder, count, 0, without, lambda picture, _: inked(picture))


def grained(picture: Image.Image, strength: float, seed: int) -> Image.Image:
    """With grains of grey on it, of so many of 255 levels' standard deviation."""
    grains = np.random.default_rng(seed).normal(0, strength, (SIDE // GRAIN, SIDE // GRAIN)).astype(np.float32)
    whole = np.asarray(Image.fromarray(grains).resize(picture.size, Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(np.asarray(picture) + whole[..., None], 0, 255).astype(np.uint8))


def rough(data: Path, folder: Path, strengths: Mapping[str, float], count: int, seed: int,
          without: Sequence[str]) -> Path:
    """Grained pictures, with their own captions; an eighth more are held out. Styles have strengths of their own, and
    the same pictures with the same grains."""
    rows: list[dict[str, Any]] = []
    for style, strength in strengths.items():
        part = changed(data, folder / style, count, seed, without,
                       partial(numbered, strength=strength, seed=seed))
        rows += [row | {"file": f"{style}/{row['file']}", "style": style} for row in rows_of(part)]
        (part / INDEX).unlink()
    (folder / INDEX).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def numbered(picture: Image.Image, n: int, strength: float, seed: int) -> Image.Image:
    """With the grains of its number."""
    return grained(picture, strength, seed * 1000 + n)


def changed(data: Path, folder: Path, count: int, seed: int, without: Sequence[str],
            change: Callable[[Image.Image, int], Image.Image]) -> Path:
    """Pictures of the styles that the model draws, half of each, each one changed by its number."""
    found = []
    for name in ("3d", "flat"):
        rows = chosen(data, name, math.ceil(count * 9 / 16), seed, without)
        found += [(change(opened(data, row), n), row["captions"][0], "train" if n < count // 2 else "holdout")
                  for n, row in enumerate(rows)]
    return write(folder, found)
