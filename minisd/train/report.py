"""report.html beside a run: its curves and sample pictures on one page that opens from disk, without scripts."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from minisd.files import put

REPORT, METRICS, SAMPLES = "report.html", "metrics.jsonl", "samples"
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 180, 62, 22    # pixels of a chart, and those left of and under its curves
COLOURS = ("#1f6fb2", "#d1495b", "#2f9e6e", "#b5830c", "#7353ba", "#00838f", "#8d5524", "#555555", "#c2185b")
UNCHARTED = ("step", "samples")
WIDE = 30                                         # largest over smallest value from which an axis is logarithmic
PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:14px sans-serif;margin:2em;max-width:1400px}}figure{{display:inline-block;margin:0 1em 1em 0}}
figcaption{{font-weight:bold}}img{{max-width:100%}}svg text{{font:11px sans-serif}}</style>
<h1>{title}</h1>
<p>{summary}</p>
{charts}
{pictures}
</html>
"""
Points = list[tuple[float, float]]


def write_report(folder: Path) -> Path:
    """Make the page anew from the run's metrics.jsonl and samples, whole or not at all."""
    rows = read_metrics(folder / METRICS)
    charts = "\n".join(chart(title, curves) for title, curves in groups(rows).items())
    page = PAGE.format(title=escape(folder.name), summary=escape(summary(rows)), charts=charts,
                       pictures=pictures(sorted((folder / SAMPLES).glob("*.png"), reverse=True)))
    put(folder / REPORT, page)
    return folder / REPORT


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, the numbers of each by name; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def groups(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Points]]:
    """Curves by chart: names with one word before a slash share a chart, every other name has its own."""
    found: dict[str, dict[str, Points]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in UNCHARTED and math.isfinite(value):
                title, _, curve = name.partition("/")
                found.setdefault(title, {}).setdefault(curve or title, []).append((row["step"], value))
    return found


def summary(rows: Sequence[Mapping[str, float]]) -> str:
    """How far the run is, and what its measures were before and are now."""
    if not rows:
        return "nothing is measured yet"
    first: dict[str, float] = dict(next((row for row in rows if row["step"] == 0), {}))
    last = {name: value for row in rows for name, value in row.items()}
    told = [f"{name} {first[name]:.4g} → {last[name]:.4g}" for name in first if name not in (*UNCHARTED, "lr")]
    return f"step {last['step']:g}; " + ("untrained → now: " + ", ".join(told) if told else "no measures at step 0")


def chart(title: str, curves: Mapping[str, Points]) -> str:
    """A picture of curves over the steps; what a curve was at step 0 is a dashed line, the bar to beat."""
    every = [point for points in curves.values() for point in points]
    last, low, high = max(step for step, _ in every) or 1, min(v for _, v in every), max(v for _, v in every)
    logarithmic = low > 0 and high > WIDE * low

    def place(step: float, value: float) -> str:
        f = math.log if logarithmic else float
        height = (f(value) - f(low)) / (f(high) - f(low)) if high > low else 0.5
        return f"{LEFT + (WIDTH - LEFT) * step / last:.1f},{(HEIGHT - BOTTOM) * (1 - height):.1f}"

    drawn = [label(LEFT - 4, 10, f"{high:.4g}", "end"), label(LEFT - 4, HEIGHT - BOTTOM, f"{low:.4g}", "end"),
             label(WIDTH, HEIGHT - 6, f"step {last:g}{', logarithmic' if logarithmic else ''}", "end")]
    for n, (name, points) in enumerate(curves.items()):
        colour = COLOURS[n % len(COLOURS)]
        drawn.append(line([place(*point) for point in points], colour))
        if points[0][0] == 0 and len(points) > 1:
            drawn.append(line([place(0, points[0][1]), place(last, points[0][1])], colour, "4 4"))
        if len(curves) > 1:
            drawn.append(label(LEFT + 8 + 100 * (n % 3), 12 + 13 * (n // 3), name, "start", colour))
    return (f'<figure><figcaption>{escape(title)}</figcaption><svg width="{WIDTH + 8}" height="{HEIGHT}">'
            f'<rect x="{LEFT}" width="{WIDTH - LEFT}" height="{HEIGHT - BOTTOM}" fill="#f6f6f6"/>'
            f'{"".join(drawn)}</svg></figure>')


def line(places: Sequence[str], colour: str, dashes: str = "") -> str:
    if len(places) == 1:
        x, y = places[0].split(",")
        return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}/>'


def label(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def pictures(files: Sequence[Path]) -> str:
    """The newest sheet, and the older ones folded away; they stay where they are."""
    shown = [f'<details{"" if n else " open"}><summary>{escape(file.stem)}</summary>'
             f'<img src="{SAMPLES}/{escape(file.name)}" alt="{escape(file.stem)}"></details>'
             for n, file in enumerate(files)]
    return "\n".join(shown)
