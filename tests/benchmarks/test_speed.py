"""benchmarks/speed.py: what its ratios mean, and what it says of them."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import speed  # noqa: E402
from measure import OURS, THEIRS, TUNED, Bench, Result, Row, in_turns  # noqa: E402


def result(ours: list[float], theirs: list[float]) -> Result:
    made = Result("a row", allowed=1e-3)
    for a, b in zip(ours, theirs, strict=True):
        made.add(OURS, a, 2 * speed.GIB)
        made.add(THEIRS, b, 3 * speed.GIB)
    return made


def test_a_ratio_is_the_median_over_pairs() -> None:
    slowing_down = result([1.0, 2.0, 10.0], [2.0, 5.0, 20.0])
    assert slowing_down.speed() == 2.0 and slowing_down.time(OURS) == 2.0
    assert slowing_down.memory() == 1.5


def test_peak_memory_is_the_largest() -> None:
    made = result([1.0], [1.0])
    made.add(OURS, 1.0, 5 * speed.GIB)
    made.add(OURS, 1.0, 4 * speed.GIB)
    assert made.peak[OURS] == 5 * speed.GIB


def test_everyone_comes_first_in_turn() -> None:
    assert [in_turns(["a", "b", "c"], n)[0] for n in range(4)] == ["a", "b", "c", "a"]


class Answering(Bench):
    """Whose workers answer at once: minisd takes 1 s and draws a 1, diffusers 2 s and a 2."""

    @contextmanager
    def _worker(self, name: str, row: Row) -> Iterator[Callable[..., dict[str, Any]]]:
        mine = 1.0 if name == OURS else 2.0

        def ask(command: str, *paths: str) -> dict[str, Any]:
            if command == "save":
                Path(paths[0]).write_text(str(mine))
            if command == "compare":
                return {"difference": abs(float(Path(paths[0]).read_text()) - mine)}
            return {"seconds": mine, "peak": speed.GIB}

        yield ask


def test_measurements_apart_add_up_to_pairs(tmp_path: Path) -> None:
    bench, made = Answering(tmp_path, 8, 1), Result("a row", difference=math.inf, allowed=2.0)
    asked = []
    for n in range(1, 5):
        before = {name: list(each) for name, each in made.seconds.items()}
        bench.once(Row("a row", "unet"), made)
        asked += [name for name, each in made.seconds.items() if each != before.get(name)]
        assert made.whole == (n % 2 == 0) and made.same == (n > 1)      # until there are two, nothing was compared
    assert asked == [OURS, THEIRS, THEIRS, OURS]
    assert made.seconds == {OURS: [1.0, 1.0], THEIRS: [2.0, 2.0]} and made.difference == 1.0
    anew = Result("a row", difference=math.inf, allowed=2.0)
    bench.once(Row("a row", "unet"), anew)            # the other's output is of an earlier run
    assert not anew.same


def test_three_in_turns(tmp_path: Path) -> None:
    bench, made, row = Answering(tmp_path, 8, 1), Result("a row", difference=math.inf), Row("a row", "unet", tuned=True)
    counts = []
    for _ in range(6):
        bench.once(row, made)
        counts.append([len(made.seconds.get(name, [])) for name in (OURS, THEIRS, TUNED)])
    assert counts == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 2, 1], [1, 2, 2], [2, 2, 2]]


def test_a_row_by_halves_is_kept(tmp_path: Path) -> None:
    made = Result("unet fp32", difference=math.inf)
    made.add(OURS, 1.0, speed.GIB)
    speed.write(tmp_path / "speed.json", [made])
    assert speed.kept(tmp_path / "speed.json") == [made]


@pytest.mark.parametrize("differ", [0.1, float("inf"), float("nan")])
def test_outputs_that_differ_fail_loudly(differ: float, capsys: pytest.CaptureFixture[str]) -> None:
    made = result([1.0], [2.0])
    assert speed.report([made]) == 0 and "DIFFER" not in speed.line(made)
    made.difference = differ
    assert speed.report([made]) == 1 and "DIFFER" in speed.line(made)
    assert "the outputs differ" in capsys.readouterr().err


def test_being_behind_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.report([result([2.0], [1.0])]) == 0
    assert "behind: a row, time 0.50" in capsys.readouterr().err


def test_what_takes_long_is_measured_on_request() -> None:
    long = [row.name for row in speed.ROWS if row.long]
    assert long and not {row.name for row in speed.chosen([])} & set(long)
    assert [row.name for row in speed.chosen(long)] == long


def test_rows_that_were_measured_are_kept(tmp_path: Path) -> None:
    path, made = tmp_path / "results" / "speed.json", result([1.0], [2.0])
    made.add(TUNED, 1.5, 1)
    made.row = "unet fp32"
    speed.write(path, [made])
    assert speed.kept(path) == [made]
    assert json.loads(path.read_text())["rows"][0]["ratio"] == 2.0
    assert speed.kept(tmp_path / "none.json") == []
    path.write_text(json.dumps({"machine": "another", "rows": []}))
    with pytest.raises(SystemExit, match="give another --out"):
        speed.kept(path)


def test_rows_stand_in_the_order_of_the_table() -> None:
    first, last = result([1.0], [2.0]), result([1.0], [2.0])
    first.row, last.row = speed.ROWS[0].name, speed.ROWS[-1].name
    assert speed.ordered([last, first]) == [first, last]


def test_a_table_has_all_columns() -> None:
    lines = speed.table([result([0.01], [2.0])]).splitlines()
    assert {line.count("|") for line in lines} == {len(speed.HEAD) + 1}
    assert "| 10 ms | 2.00 s | **200.00** |" in lines[-1]


def test_shares_of_the_best_pace() -> None:
    made = result([2.0], [4.0])
    made.row = "unet bf16"
    peaks = {"bfloat16": {"product": 1000.0, "convolution": 1606.5}}
    share, = speed.shares([made], peaks)
    assert share.startswith("unet bf16: 803 GFLOP/s, 50% of the 1606")
    assert not list(speed.shares([made], {}))
