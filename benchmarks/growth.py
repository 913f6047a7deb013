"""What `scaling.py` measures along which axes, its JSON file, and what comes out: a table, slopes and a plot."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measure import HERE
from meter import GIB
from PIL import Image
from speed import machine

sys.path.insert(0, str(HERE.parent))

from minisd.evaluate.curves import Panel, curves
from minisd.files import put
from minisd.samplers.recipes import NAMES, sampler

STEP, DECODING, PICTURE, SAMPLER = "guided UNet step", "VAE decoding", "whole picture", "sampler"
CALLS = 20                                            # steps of a sampler's walk
GOAL = 0.005                                          # of a step: what a sampler may take


@dataclass(frozen=True)
class Axis:
    """What changes, along which values."""

    unit: str
    values: tuple[int, ...]
    few: tuple[int, ...]                              # of `--quick`
    jobs: tuple[str, ...] = (STEP, DECODING)


AXES = {
    "size": Axis("pixels a side", (256, 384, 512, 768, 1024), (16, 32)),
    "batch": Axis("pictures of 512 pixels", (1, 2, 4, 8), (1, 2)),
    "adapters": Axis("LoRAs, at 512 pixels", (0, 1, 2, 4, 8), (0, 1, 2), (STEP,)),
    "steps": Axis("steps of the embedded model", (1, 2, 5, 10, 20, 50), (1, 2), (PICTURE,)),
    SAMPLER: Axis("steps", (CALLS,), (2,), tuple(name for name in NAMES if not sampler(name).adaptive)),
}
DRAWN = {name: axis for name, axis in AXES.items() if name != SAMPLER}


@dataclass(frozen=True)
class Point:
    """One measurement: seconds of each repeat, bytes held before it, and the most that was held."""

    axis: str
    job: str
    x: int
    seconds: tuple[float, ...]
    held: int
    peak: int

    @property
    def time(self) -> float:
        """The quickest repeat: what disturbs a measurement only ever adds to it."""
        return min(self.seconds)

    @property
    def room(self) -> int:
        """Bytes beside what is held anyway, such as the weights."""
        return max(self.peak - self.held, 0)


MEASURES: dict[str, Callable[[Point], float]] = {
    "seconds": lambda p: p.time, "GiB beside the weights": lambda p: p.room / GIB}


# ---------------------------------------------------------------- the file
def kept(path: Path) -> list[Point]:
    """Points of earlier runs of the same versions on the same machine, in the order of the axes."""
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["machine"] != machine():
        raise SystemExit(f"{path} is of {data['machine']}, this is {machine()}: give another --out")
    return [Point(**{**row, "seconds": tuple(row["seconds"])}) for row in data["points"]]


def keep(path: Path, point: Point) -> None:
    """The file with one point more, whole or not at all."""
    others = [one for one in kept(path) if (one.axis, one.job, one.x) != (point.axis, point.job, point.x)]
    points = sorted([*others, point], key=lambda p: (list(AXES).index(p.axis), AXES[p.axis].jobs.index(p.job), p.x))
    put(path, json.dumps({"machine": machine(), "points": [asdict(one) for one in points]}, indent=1) + "\n")


# ---------------------------------------------------------------- what is told
def lines(points: list[Point]) -> Iterator[tuple[str, str, list[Point]]]:
    """The points of each job of each axis that is drawn."""
    for name, axis in DRAWN.items():
        for job in axis.jobs:
            found = [point for point in points if (point.axis, point.job) == (name, job)]
            if found:
                yield name, job, found


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the straight line through the logarithms; points at 0, such as of no LoRA, are left out."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    return float(np.polyfit(*np.log(pairs).T, 1)[0]) if len(pairs) > 1 else float("nan")


def table(points: list[Point]) -> str:
    """Every point, and the slopes of its line, as Markdown."""
    rows = ["| axis | | | seconds | GiB at most | GiB beside the weights |", "|---|---|---:|---:|---:|---:|"]
    for name, job, line in lines(points):
        rows += [f"| {name} | {job} | {p.x} | {p.time:.3g} | {p.peak / GIB:.2f} | {p.room / GIB:.3f} |" for p in line]
        xs = [float(p.x) for p in line]
        rows.append(f"| **slope** | {job} by {AXES[name].unit} | | **{slope(xs, [p.time for p in line]):.2f}** | | "
                    f"**{slope(xs, [float(p.room) for p in line]):.2f}** |")
    return "\n".join(rows)


def findings(points: list[Point]) -> Iterator[str]:
    """What LoRAs add to a step at 512 pixels, and what the samplers take of one, the slowest first."""
    worn = {p.x: p.time for p in points if p.axis == "adapters"}
    if 0 in worn:
        added = (f"{x}: {seconds / worn[0] - 1:.1%}" for x, seconds in worn.items() if x)
        yield f"to a guided step of {shown(worn[0])} LoRAs add {', '.join(added)}"
    step = next((p.time for p in points if (p.axis, p.job) == ("batch", STEP)), None)
    walks = {p.job: p.time / p.x for p in points if p.axis == SAMPLER}
    if step is None or not walks:
        return
    yield f"beside a guided step of {shown(step)}, what is not the network takes (goal: under {GOAL:.1%}):"
    for name, seconds in sorted(walks.items(), key=lambda one: -one[1]):
        yield f"  {name:20} {1e6 * seconds:6.0f} us  {seconds / step:.4%}"


def plot(points: list[Point]) -> Image.Image:
    """Time above and memory below, axis by axis, in logarithms: the steepness of a line is its slope."""
    rows = [curves([panel(points, name, what, of) for name in DRAWN]) for what, of in MEASURES.items()]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for n, row in enumerate(rows):
        sheet.paste(row, (0, n * row.height))
    return sheet


def panel(points: list[Point], name: str, what: str, of: Callable[[Point], float]) -> Panel:
    """The lines of an axis; 0 has no logarithm, and what it takes is a level line below the others."""
    drawn: dict[str, list[tuple[float, float]]] = {}
    for _, job, line in (one for one in lines(points) if one[0] == name):
        drawn[job] = [(p.x, of(p)) for p in line if p.x and of(p) > 0]
        for none in (p for p in line if not p.x and of(p) > 0):
            drawn[f"{job} without"] = [(x, of(none)) for x, _ in drawn[job]]
    return Panel(what, AXES[name].unit, drawn, powers=True)


def shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

