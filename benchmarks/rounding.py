"""Weights in bfloat16 beside float32 ones: `python benchmarks/rounding.py --data FOLDER` runs the recipe exp0001 on the
embedded model with either, and shows both loss curves and what the students are worth on held-out pictures.

The data is the folder that minisd.recipes.emoji_data has made. Both runs see the same pictures, noise and timesteps in
the same order. They are resumed: stop them at any moment and start again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from minisd.evaluate.curves import Panel, curves
from minisd.files import put
from minisd.train import loop
from minisd.train.distillation import Place, distill
from minisd.train.experiment import Experiment, read
from minisd.train.report import read_metrics

RESULTS = Path(__file__).parent / "results"
NAMES = {"fp32": "float32 weights", "bf16": "bfloat16 weights"}
TERMS = ("noise", "output", "features")


def experiment(weights: str, steps: int | None) -> Experiment:
    """The recipe with weights of one precision; float32's is the recipe itself."""
    whole = read("exp0001")
    train = replace(whole.train, weights=weights, steps=steps or whole.train.steps)
    return replace(whole, name="exp0001" if weights == "fp32" else "exp0001-bf16", train=train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/rounding"), help="where the runs are (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each run (the recipe's)")
    parser.add_argument("--only", choices=NAMES, help="one run alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "rounding.json", help="the figures (%(default)s)")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    for weights in [options.only] if options.only else NAMES:
        one = experiment(weights, options.steps)
        place = Place(options.data, options.runs / one.name, options.runs / "cache")
        distill(one, place, "auto")
        rows[weights] = read_metrics(place.out / loop.METRICS)
    if len(rows) == len(NAMES):
        found = compared(rows)
        put(options.out, json.dumps({"curves": {name: logged(each) for name, each in rows.items()}, **found}, indent=1)
            + "\n")
        drawn(rows).save(options.out.with_suffix(".png"), optimize=True)
        print(table(found))


def logged(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The rows of the losses, each a mean over the steps since the last."""
    return [{name: row[name] for name in ("step", *TERMS, "gradient")} for row in rows if "noise" in row]


def compared(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Held-out errors before and after, and how far the curves are apart over the last half: the mean of the ratios
    less 1, and the mean of their distances from 1."""
    before = measured(rows["fp32"])[0]
    held_out = {term: {"before": before[f"held_out/{term}"], **{
        weights: measured(each)[-1][f"held_out/{term}"] for weights, each in rows.items()}} for term in TERMS}
    halves = [logged(rows[weights])[len(logged(rows[weights])) // 2:] for weights in ("bf16", "fp32")]
    apart = {}
    for term in TERMS:
        ratios = [a[term] / b[term] - 1 for a, b in zip(*halves, strict=True)]
        apart[term] = {"mean": sum(ratios) / len(ratios), "spread": sum(map(abs, ratios)) / len(ratios)}
    return {"held_out": held_out, "curves apart": apart}


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "held_out/noise" in row]


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| term | untrained | float32 | bfloat16 | ratio | training curves apart |",
             "|---|---:|---:|---:|---:|---:|"]
    for term in TERMS:
        one, apart = found["held_out"][term], found["curves apart"][term]
        lines.append(f"| {term} | {one['before']:.4g} | {one['fp32']:.4g} | {one['bf16']:.4g} | "
                     f"{one['bf16'] / one['fp32']:.3f} | {apart['mean']:+.1%} |")
    return "\n".join(lines)


def drawn(rows: dict[str, list[dict[str, Any]]]) -> Image.Image:
    """A panel for every term."""
    return curves([Panel(term, "step", {NAMES[weights]: [(row["step"], row[term]) for row in logged(each)]
                                        for weights, each in rows.items()}) for term in TERMS])


if __name__ == "__main__":
    main()
