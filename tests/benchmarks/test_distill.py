"""benchmarks/distill.py: what is kept of earlier measurements, and what its ratios mean."""

import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import distill  # noqa: E402


def row(side: int, trainer: str, *seconds: float, peak: int = 4) -> dict[str, Any]:
    return {"side": side, "trainer": trainer, "seconds": list(seconds), "peak": peak * distill.GIB}


def test_what_is_measured_anew_replaces_what_was_and_the_rest_stays_in_its_order() -> None:
    rows: distill.Rows = []
    ours = row(32, distill.OURS, 1)
    for one in (row(64, distill.OURS, 4), row(32, distill.THEIRS, 2), row(32, distill.OURS, 3), ours):
        rows = distill.merged(rows, one)
    assert rows == [row(32, distill.OURS, 1), row(32, distill.THEIRS, 2), row(64, distill.OURS, 4)]


def test_ratios_are_of_medians_and_to_the_published_trainer_at_the_same_size() -> None:
    rows = [row(32, distill.OURS, 1, 2, 90, peak=3), row(32, distill.THEIRS, 4, 5, 6, peak=6), row(64, distill.OURS, 9)]
    ours, theirs, alone = distill.table(rows).splitlines()[2:]
    assert ours == "| 32x32 | minisd, float32 weights | 2.00 | **2.50** | 3.00 | **0.50** |"
    assert theirs == "| 32x32 | BK-SDM's trainer | 5.00 |  | 6.00 |  |"
    assert alone == "| 64x64 | minisd, float32 weights | 9.00 |  | 4.00 |  |"
