"""Grids drawn: the cells that are not there yet, model after model, and then the sheets of all."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

from PIL import Image

from minisd import images
from minisd.drawing.wardrobe import wardrobe_of
from minisd.generate.album import Album
from minisd.generate.dictionary import Dictionary
from minisd.generate.drawings import Habits, drawing
from minisd.generate.easel import Easel
from minisd.generate.gallery import must_be_ours, places, rewrite, say_how_many
from minisd.generate.grid import Plan
from minisd.generate.source import opened
from minisd.labels import table
from minisd.store import find

LARGEST = 1 << 26                                 # pixels of a sheet; pictures are made smaller to fit


def draw(plan: Plan) -> None:
    """Every cell, one model in memory at a time; then the sheets, by whichever process finds all cells there."""
    album, out = Album(), plan.options.out
    for cell in plan.cells:
        album.open(cell.options)
    for name in plan.pages:
        must_be_ours(out / name)
    sources = {model: opened(find(model), plan.options, plan.share) for model in dict.fromkeys(plan.models)}
    words = {model: Dictionary(plan.library, source.cfg) for model, source in sources.items()}
    habits = {model: Habits(source.own, source.cfg.size, album.look, plan.shelf.lend, words[model].say)
              for model, source in sources.items()}
    wanted = [drawing(cell.options, cell.prompt, habits[model])
              for cell, model in zip(plan.cells, plan.models, strict=True)]
    album.check(wanted)
    keys = [sources[model].key(one) for model, one in zip(plan.models, wanted, strict=True)]
    there = places(out, keys)
    say_how_many(there, out)
    cells = {model: [n for n, own in enumerate(plan.models) if own == model] for model in sources}
    wardrobes = {model: wardrobe_of(plan.shelf.files, words[model].lessons, [wanted[n] for n in cells[model]],
                                    source.cfg, plan.options.allow_unused) for model, source in sources.items()}
    for model, source in sources.items():
        if any(there[n].path is None for n in cells[model]):
            easel = Easel(source.load(), source.sha256, out, plan.share, album.pictures, wardrobes[model],
                          plan.options.preview_every)
            batches = easel.missing([wanted[n] for n in cells[model]], [there[n] for n in cells[model]], plan.batch)
            list(easel.draw(batches))
            del easel, batches                    # the next model needs the memory
    write_sheets(plan, [place.path for place in places(out, keys)])


def write_sheets(plan: Plan, files: Sequence[Path | None]) -> None:
    """A sheet for each page whose cells are all there; the last of several processes finds them all."""
    _, rows, columns = plan.shape
    for page, name in enumerate(plan.pages):
        first = page * rows * columns
        own = [path for path in files[first:first + rows * columns] if path is not None]
        if len(own) < rows * columns:
            continue
        cells = plan.cells[first:first + rows * columns]
        shrink = ceil(sqrt(sum(width * height for width, height in map(size_of, own)) / LARGEST))
        pictures = [images.open_picture(path).reduce(shrink) for path in own]
        title = " · ".join(filter(None, (plan.title, cells[0].labels[0])))
        above, beside = [cell.labels[2] for cell in cells[:columns]], [cell.labels[1] for cell in cells[::columns]]
        sheet = table([pictures[n:n + columns] for n in range(0, len(pictures), columns)], above, beside, title)
        rewrite(sheet, plan.options.out / name)
        print(plan.options.out / name, flush=True)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
