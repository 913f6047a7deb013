"""What a distilled model is shown and taken home as: sheets beside its teacher, and a whole model folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from minisd import store
from minisd.config import text_parts
from minisd.drawing.plan import STANDARD
from minisd.evaluate.sheet import sheet
from minisd.files import put
from minisd.images import GAP, grid
from minisd.pipeline import StableDiffusion
from minisd.png import png


def side_by_side(prompts: Sequence[str], drawn: Sequence[Sequence[Image.Image]], step: int) -> Image.Image:
    """Two prompts to a row: what teacher, untrained student and student have drawn from the same noise."""
    pictures, labels = [], []
    for prompt, *three in zip(prompts, *drawn, strict=True):
        pictures += three
        labels += [f"teacher: {prompt}", "untrained", f"student (averaged), step {step}"]
    return sheet(pictures, labels, columns=6)


def drawn_once(path: Path, draw: Callable[[], list[Image.Image]]) -> list[Image.Image]:
    """Square pictures that are drawn when first asked for, and kept as one column."""
    if not path.is_file():
        put(path, png(grid(draw(), columns=1)))
    with Image.open(path) as column:
        side = column.width
        return [column.crop((0, top, side, top + side)) for top in range(0, column.height, side + GAP)]


def save_whole(folder: Path, sd: StableDiffusion) -> None:
    """A native model folder of all that draws, with what it likes best."""
    store.save(folder, replace(sd.cfg, vision=None), {"unet": sd.unet, "vae": sd.vae, **text_parts(sd.text)},
               defaults=None if sd.defaults == STANDARD else sd.defaults)
