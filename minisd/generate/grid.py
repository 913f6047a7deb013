"""Grids as TOML files: an axis is an option and its values, a cell is a picture. All is checked before torch is loaded.

    [options]
    prompt = "a red apple"

    [x]
    option = "steps"
    values = [5, 10, 20]

    [y]
    option = "prompt"
    search = "red"                                # each value stands for this; without it, for the whole option
    values = ["red", "green"]

    [z]                                           # a page each
    option = "lora"
    values = ["", "style:0.5", ["style:1", "face:0.5"]]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import Any

from minisd import schema
from minisd.drawing.tags import EMBEDDING, LORA
from minisd.errors import USAGE, MinisdError
from minisd.generate import drawings, request
from minisd.generate.options import BATCH, GROUPS, MODEL, Many, Options, chosen
from minisd.generate.shelf import Shelf
from minisd.shares import Share, share

OPTIONS = [each.name for cls in GROUPS.values() for each in fields(cls)]          # the options of a picture
LISTS = ("lora", "embedding")                     # those of which a cell may have several
CELLS = 10_000
NAMES = ("z", "y", "x")                           # the last turns fastest


@dataclass(frozen=True)
class Axis:
    """What changes along it."""

    option: str
    values: tuple[Any, ...]
    search: str | None = None                     # in the option's text, replaced by each value

    @property
    def name(self) -> str:
        return self.option.replace("-", "_")

    def label(self, value: Any) -> str:
        """A text speaks for itself, a number does not, nor does nothing."""
        if isinstance(value, list):
            return " + ".join(map(str, value))
        return value if value and isinstance(value, str) else f"{self.option} {value}"

    def put(self, values: Mapping[str, Any], value: Any) -> dict[str, Any]:
        """The options with this value on the axis."""
        if self.search is None:
            return {**values, self.name: value}
        text = values.get(self.name)
        if not isinstance(text, str) or self.search not in text:
            raise MinisdError(f"{self.search[:60]!r} is not in the {self.option}", why=f"which is {text!r}"[:200],
                              remedy="search for words that are there", code=USAGE)
        return {**values, self.name: text.replace(self.search, value)}


@dataclass(frozen=True)
class Grid:
    """A file of one grid."""

    x: Axis
    y: Axis | None = None
    z: Axis | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> dict[str, Axis]:
        return {name: axis for name, axis in zip(NAMES, (self.z, self.y, self.x), strict=True) if axis is not None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pages, rows, columns."""
        return (len(self.z.values) if self.z else 1, len(self.y.values) if self.y else 1, len(self.x.values))


@dataclass(frozen=True)
class Cell:
    """One picture of a grid, and the labels of its page, row and column."""

    options: Options
    labels: tuple[str, str, str]

    @property
    def prompt(self) -> str:
        return self.options.prompt[0]


@dataclass(frozen=True)
class Plan:
    """A grid that has been checked: cells page by page, row by row."""

    options: Options
    cells: Sequence[Cell]
    shape: tuple[int, int, int]                   # pages, rows, columns
    title: str                                    # the prompt, where it is the same in all
    name: str                                     # of the grid's file
    share: Share
    shelf: Shelf                                  # of LoRAs
    library: Shelf                                # of embeddings

    @property
    def models(self) -> list[str]:
        """The model of each cell."""
        return [cell.options.picture.model or MODEL for cell in self.cells]

    @property
    def batch(self) -> int:
        return self.options.many.batch or BATCH

    @property
    def pages(self) -> list[str]:
        """Names of the sheets."""
        count = self.shape[0]
        return [f"{self.name}-{n}.png" for n in range(1, count + 1)] if count > 1 else [f"{self.name}.png"]


def planned(options: Options) -> Plan:
    """All cells of the grid that the options name; what is not an option or cannot be its value is refused."""
    path = options.many.grid
    assert path is not None
    if options.from_image or len(options.prompt) > 1 or replace(options.many, grid=None, batch=None) != Many():
        raise MinisdError("--grid beside more prompts, --prompts, --count or --from-image", str(path),
                          remedy="make an axis of what changes", code=USAGE)
    grid = schema.read_file(Grid, path)
    given = chosen(options) | ({"prompt": options.prompt[0]} if options.prompt else {})
    fixed = {name.replace("-", "_"): value for name, value in grid.options.items()} | given
    shelf, library = Shelf(LORA), Shelf(EMBEDDING)
    try:
        check_axes(grid, fixed)
        cells = [cell_of(options, fixed, grid, values)
                 for values in product(*(axis.values for axis in grid.axes.values()))]
        request.check(options, list(dict.fromkeys(cell.prompt for cell in cells)))
        for cell in cells:
            request.lend(cell.options, [cell.prompt], shelf, library)
    except MinisdError as error:
        error.where = f"{path}, {error.where}" if error.where else str(path)
        raise
    us = share()
    request.make_folder(options, us)
    title = "" if any(axis.name == "prompt" for axis in grid.axes.values()) else fixed["prompt"]
    return Plan(options, cells, grid.shape, title, path.stem, us, shelf, library)


def check_axes(grid: Grid, fixed: Mapping[str, Any]) -> None:
    """Options that there are, values to put in, and no option in two places."""
    axes, known = list(grid.axes.values()), [*OPTIONS, "prompt"]
    for name in (*fixed, *(axis.name for axis in axes)):
        if name not in known:
            near = get_close_matches(name, known, n=3)
            raise MinisdError(f"{name!r} is not an option of a picture", why=f"near: {', '.join(near)}" if near else "",
                              remedy=f"one of {', '.join(sorted(known))}", code=USAGE)
    for name, axis in grid.axes.items():
        kinds = (str,) if axis.search is not None else (str, int, float, *([list] if axis.name in LISTS else []))
        if not axis.values or any(type(value) not in kinds for value in axis.values):
            raise MinisdError(f"the values of axis {name}: {axis.values!r}"[:300],
                              remedy="give texts" if axis.search is not None else "give texts or numbers", code=USAGE)
        if axis.search == "":
            raise MinisdError(f"axis {name} searches for nothing", remedy="give the words to be replaced", code=USAGE)
    plain = [axis.name for axis in axes if axis.search is None]
    twice = [name for name in plain if name in fixed or plain.count(name) > 1]
    if twice:
        raise MinisdError(f"{twice[0]} is an axis, and given elsewhere too", remedy="give it once", code=USAGE)
    if (cells := prod(grid.shape)) > CELLS:
        raise MinisdError(f"a grid of {cells} cells", remedy=f"at most {CELLS} are drawn", code=USAGE)


def cell_of(options: Options, fixed: Mapping[str, Any], grid: Grid, values: Sequence[Any]) -> Cell:
    """One cell: each value put on its axis, whole texts before words in them."""
    pairs = list(zip(grid.axes.values(), values, strict=True))
    named = dict(fixed)
    for axis, value in sorted(pairs, key=lambda pair: pair[0].search is not None):
        named = axis.put(named, value)
    prompt = named.pop("prompt", None)
    if not isinstance(prompt, str):
        raise MinisdError("no prompt", remedy='give one in [options], such as prompt = "a red apple"', code=USAGE)
    for name in LISTS:
        if isinstance(named.get(name), str):      # one may stand for itself
            named[name] = [named[name]] if named[name] else []
    groups: dict[str, Any] = {}
    for group, cls in GROUPS.items():
        own = [each.name for each in fields(cls) if each.name in named]
        groups[group] = schema.read(cls, {name: named[name] for name in own}, "")
    whole = request.with_sides(replace(options, prompt=(prompt,), **groups))
    drawings.check(whole)
    labels = {name: axis.label(value) for name, (axis, value) in zip(grid.axes, pairs, strict=True)}
    return Cell(whole, (labels.get("z", ""), labels.get("y", ""), labels["x"]))
