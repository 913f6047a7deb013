"""How far our samplers are from others', whole: `python benchmarks/samplers.py` prints the README's table.

Every walk of tests/reference/sampler_cases.py beside diffusers, at every input to the network, and those that
tests/goldens holds of k-diffusion, at the end.  Differences are relative to the largest value of what is compared.
Needs the extras `reference` and `dev`.  Writes benchmarks/results/samplers.json.
"""
import argparse
import json
import math
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "samplers")]

from reference.sampler_cases import CASES  # noqa: E402
from reference.walks import Worst, compared  # noqa: E402
from test_k_diffusion import WALKS, recorded_in, walk_difference  # noqa: E402

from minisd.samplers.recipes import sampler  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "samplers.json"


class Row(NamedTuple):
    """A line of the table; a column that was not measured is NaN."""
    method: str
    reference: str
    walks: int
    float64: float
    float32: float = math.nan
    as_it_is: float = math.nan


def beside_diffusers() -> Iterator[Row]:
    found: dict[str, list[Worst]] = {}
    for name, case in CASES.items():
        walks = found.setdefault(case.method, [])
        walks += [compared(case, prediction, n, as_it_is=True) for prediction, n in case.walks]
        print(f"  {name}", file=sys.stderr, flush=True)
    for method, walks in found.items():
        worst = (max(column) for column in zip(*walks, strict=True))
        yield Row(method, f"diffusers {version('diffusers')}", len(walks), *worst)


def beside_k_diffusion() -> Iterator[Row]:
    found: dict[str, list[float]] = {}
    for name in WALKS:
        bare = re.sub(r"( churn| at a third| eta 0\.5| \d+)$", "", name.split(",")[0])
        found.setdefault(sampler(bare).display, []).append(walk_difference(name))
    for method, differences in found.items():
        yield Row(method, f"k-diffusion {recorded_in()['k-diffusion']}", len(differences), max(differences))


def table(rows: list[Row]) -> str:
    """A line for each method, with what is known of it from either reference."""
    names = list(dict.fromkeys(row.reference for row in rows))
    head = [f"{names[0]}: walks, float64, ours in float32", *(f"{name}: walks, float64" for name in names[1:])]
    lines = [f"| method | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
    for method in dict.fromkeys(row.method for row in rows):
        found = {row.reference: row for row in rows if row.method == method}
        lines.append(f"| {method} | {' | '.join(cell(found.get(name)) for name in names)} |")
    return "\n".join(lines)


def cell(row: Row | None) -> str:
    if row is None:
        return "–"
    return ", ".join([str(row.walks), *(f"{x:.1e}" for x in (row.float64, row.float32) if not math.isnan(x))])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.simplefilter("ignore")
    rows = [*beside_diffusers(), *beside_k_diffusion()]
    print(table(rows))
    result = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
              "rows": [{key: None if value != value else value for key, value in row._asdict().items()}
                       for row in rows]}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
