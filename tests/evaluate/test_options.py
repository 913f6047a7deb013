"""Options are refused before anything is loaded, with the option's name and what it allows."""

from dataclasses import replace
from pathlib import Path

import pytest

from minisd.errors import MinisdError
from minisd.evaluate.options import Options


@pytest.mark.parametrize("change, match, code", [
    ({"count": 1}, "--count 1 is out of range", 2),
    ({"batch": 0}, "--batch 0", 2),
    ({"steps": 0}, "--steps 0", 2),
    ({"cfg": float("nan")}, "--cfg nan", 2),
    ({"cfg": -1.0}, "--cfg -1", 2),
    ({"sampler": "eular"}, "euler", 2),
    ({"sampler": ""}, "sampler", 2),
    ({"seed": -1}, "--seed -1", 2),
    ({"seed": 2 ** 64 - 100}, "--seed", 2),
])
def test_what_is_out_of_range_is_named(change: dict, match: str, code: int, tmp_path: Path):
    options = replace(Options("emoji", tmp_path, tmp_path / "out"), **change)
    with pytest.raises(MinisdError, match=match) as caught:
        options.check()
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_a_report_is_never_overwritten(tmp_path: Path):
    options = Options("emoji", tmp_path, tmp_path / "out")
    options.check()
    options.check()
    (tmp_path / "out" / "report.json").touch()
    with pytest.raises(MinisdError, match="nothing is overwritten") as caught:
        options.check()
    assert caught.value.code == 2


def test_a_folder_that_cannot_be_made_is_a_lack_of_resources(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(MinisdError, match="cannot be made") as caught:
        Options("emoji", tmp_path, tmp_path / "file" / "out").check()
    assert caught.value.code == 4
