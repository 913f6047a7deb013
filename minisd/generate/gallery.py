"""What a folder already holds of the pictures that are wanted, so that none of them is drawn twice."""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minisd import __version__
from minisd.drawing.metadata import Drawn, read_drawn
from minisd.drawing.plan import Drawing
from minisd.errors import USAGE, MinisdError
from minisd.files import put
from minisd.png import png
from minisd.shares import Share

log = logging.getLogger(__name__)

NUMBERED = re.compile(r"(\d{5,9})-.*\.png")
MARK = "minisd-sheet"                             # the text chunk of a sheet or preview


@dataclass(frozen=True)
class Key:
    """What a picture follows from, to the bit but for how many were drawn together."""

    drawing: Drawing
    model_sha256: str
    device: str
    dtype: str


def key_of(drawn: Drawn) -> Key:
    return Key(drawn.drawing, drawn.model_sha256, drawn.device, drawn.dtype)


@dataclass(frozen=True)
class Place:
    """Where a wanted picture is, or under which number it is to be written."""

    number: int
    path: Path | None = None


def places(folder: Path, wanted: Sequence[Key]) -> list[Place]:
    """One place per wanted picture, in order: those that are there, and for the others the numbers of a whole list.

    Numbers follow the pictures that are no part of the list, so every process that shares it, and every later run,
    works out the same ones. A picture that is wanted twice is there twice.
    """
    found, others = contents(folder, set(wanted))
    numbers = range(others + 1, others + 1 + len(wanted))
    there: list[Path | None] = [found[key].pop(number, None) for key, number in zip(wanted, numbers, strict=True)]
    for n, key in enumerate(wanted):              # the rest, in order: they stand under the numbers of another list
        if there[n] is None and found[key]:
            there[n] = found[key].pop(min(found[key]))
    return [Place(number, path) for number, path in zip(numbers, there, strict=True)]


def say_how_many(places: Sequence[Place], folder: Path) -> None:
    """How much of a list is there already, if any of it is."""
    there = sum(place.path is not None for place in places)
    if there:
        log.warning("%d of %d pictures are in %s already", there, len(places), folder)


def contents(folder: Path, wanted: set[Key]) -> tuple[dict[Key, dict[int, Path]], int]:
    """The wanted pictures that a folder holds, by number, and the highest number of what else is there."""
    found: dict[Key, dict[int, Path]] = defaultdict(dict)
    others = 0
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if (match := NUMBERED.fullmatch(path.name)) is None:
            continue
        key = recorded(path)
        if key in wanted:
            found[key][int(match[1])] = path
        else:
            others = max(others, int(match[1]))
    return found, others


def recorded(path: Path) -> Key | None:
    """What a picture followed from; None where it does not say so, as a grid or a stranger's picture."""
    try:
        return key_of(read_drawn(path))
    except MinisdError:
        return None


def must_be_ours(path: Path) -> None:
    """A sheet or preview is written anew each time, but never over a file that is none."""
    if not path.exists():
        return
    try:
        with Image.open(path, formats=["PNG"]) as image:
            ours = MARK in image.info
    except (OSError, ValueError, SyntaxError):
        ours = False
    if not ours:
        raise MinisdError("another file has the name of a sheet", str(path), "only sheets are written anew",
                          "rename it, or give another folder by --out", USAGE)


def rewrite(sheet: Image.Image, path: Path) -> None:
    """Write a sheet, whole or not at all, over an older one."""
    put(path, png(sheet, {MARK: __version__}, small=True))


def preview_name(share: Share) -> str:
    """Of the file of previews: each process has its own."""
    return "preview.png" if share.alone else f"preview-{share.rank}.png"
