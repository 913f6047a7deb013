"""What TensorBoard is shown: the rows, each once however often the run was stopped; and how its absence is told."""

import sys
from dataclasses import replace

import pytest
from line import CFG, fit, rows

from minisd.errors import USAGE, MinisdError
from minisd.train.board import FOLDER

SHOWN = replace(CFG, tensorboard=True)


def test_without_the_package_it_is_said_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MinisdError, match="TensorBoard is not installed") as error:
        fit(tmp_path, SHOWN)
    assert error.value.code == USAGE and "minisd[track]" in error.value.remedy and not list(tmp_path.iterdir())


def test_unasked_it_is_not_even_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    fit(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_each_row_is_shown_once_after_a_restart_too(tmp_path):
    pytest.importorskip("tensorboard", reason="shows curves: pip install minisd[track]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    fit(tmp_path, replace(SHOWN, steps=4))
    for folder in tmp_path.glob("checkpoint-4"):
        folder.rename(tmp_path / "lost")              # so that it goes on from step 2
    fit(tmp_path, SHOWN)
    shown = EventAccumulator(str(tmp_path / FOLDER))
    shown.Reload()
    told = [row for row in rows(tmp_path) if "fit" in row]
    assert [(one.step, pytest.approx(one.value)) for one in shown.Scalars("fit")] == [
        (row["step"], row["fit"]) for row in told]
    assert [one.step for one in shown.Scalars("weight")] == [3, 6]
