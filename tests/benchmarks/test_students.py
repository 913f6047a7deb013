"""benchmarks/students.py: what it compares, and how its table counts what was won back."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))

from students import ABLATION, NAMES, UPDATES, Drawn, Row, experiments, kept, table

TEACHER = Row("teacher", 100, 10 ** 9, 9.0, 0.0, (0.0,) * 4, None, Drawn(1.0, 0.1, 0.0, 0.8), "a", "b")
UNTRAINED = replace(TEACHER, name="without mid", parameters=80, error=0.4, won=(0.0, 0.0, 0.0),
                    drawn=Drawn(0.5, 0.5, 0.4, 0.6))
STUDENT = replace(UNTRAINED, name="exp0001", error=0.1, won=(0.75, 0.7, 0.8), drawn=Drawn(0.8, 0.2, 0.04, 0.7))


def test_the_ablation_differs_in_what_it_says_alone():
    base, *others = experiments()[len(NAMES):]
    assert base.name.endswith("-noise") and len(others) == len(ABLATION) - 1
    assert {one.train.steps for one in (base, *others)} == {UPDATES}
    for one in (base, *others):
        changed = ABLATION[one.name.removeprefix("bk-small-")]
        assert replace(one, name="", distill=replace(one.distill, output=1.0, features=1.0, normalised=False,
                                                     random_captions=None)) == replace(
            base, name="", distill=replace(base.distill, output=1.0, features=1.0))
        assert all(getattr(one.distill, name) == value for name, value in changed.items())
    assert len({str(one.distill) for one in (base, *others)}) == len(ABLATION)


def test_the_table_says_what_was_won_back():
    rows = {row.name: row for row in (TEACHER, UNTRAINED, STUDENT)}
    lines = table(rows, [*NAMES]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| teacher", "| without mid", "| exp0001"]
    assert "**75%** (70% to 80%)" in lines[4] and lines[4].count("**75%**") == 2  # (0.5 - 0.2) / (0.5 - 0.1)
    assert "**90%**" in lines[4] and "**" not in lines[2] + lines[3]
    without = table(rows | {"exp0001": replace(STUDENT, drawn=None)}, NAMES).splitlines()
    assert all(line.count("|") == 7 for line in without) and "**75%**" in without[4]


def test_rows_are_read_back(tmp_path):
    rows = [TEACHER, replace(STUDENT, drawn=None)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"protocol": {}, "rows": [asdict(row) for row in rows]}))
    assert json.loads(json.dumps([asdict(row) for row in kept(path)])) == json.loads(path.read_text())["rows"]
    assert [row.drawn for row in kept(path)] == [TEACHER.drawn, None]
    assert kept(tmp_path / "none") == []


@pytest.mark.parametrize("names", [[], ["never run"]])
def test_what_was_not_run_is_left_out(names):
    assert len(table({"teacher": TEACHER}, names).splitlines()) == 3
