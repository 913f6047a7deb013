"""benchmarks/lora.py: what its figures mean, and that calls with `--more` add up."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import lora  # noqa: E402
from measure import OURS, THEIRS  # noqa: E402

STEPS = {"none": 2.0, "one": 2.25, "three": 2.5, "merged": 2.0}


def test_what_one_adds_is_the_median_over_rounds() -> None:
    seconds = {OURS: {"none": [1.0, 5.0, 2.0], "one": [1.125, 5.25, 9.0]}, THEIRS: {"none": [2.0], "one": [2.5]}}
    assert lora.added(seconds) == {OURS: {"one": 0.25}, THEIRS: {"one": 0.5}}


@contextmanager
def answering(options: argparse.Namespace, name: str, dtype: str = "float32") -> Iterator[Any]:
    """A worker that answers at once: diffusers takes twice as long, and its LoRAs add three times as much."""
    def ask(command: str, *arguments: Any) -> dict[str, Any]:
        theirs = name == THEIRS
        if command == "step":
            worn = {(0, False): "none", (1, False): "one", (3, False): "three", (3, True): "merged"}
            more = STEPS[worn[len(arguments[0]), arguments[1]]] - 2
            return {"seconds": 4 + 3 * more if theirs else 2 + more}
        return {"seconds": 2.0 if theirs else 1.0, "peak": (3 if theirs else 2) * lora.GIB, "difference": 0.0,
                "parameters": 7}

    yield ask


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program's file after it was called with these options."""
    out = tmp_path / "lora.json"
    (tmp_path / THEIRS).mkdir()
    monkeypatch.setattr(lora, "worker", answering)
    monkeypatch.setattr(lora, "make_loras", lambda *_: {name: f"{name}.safetensors" for name in lora.NAMES})

    def call(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["lora.py", "--weights", str(tmp_path), "--out", str(out), *options])
        assert lora.main() == 0
        return dict(json.loads(out.read_text()))

    return call


def test_every_row_is_told(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told("--repeats", "1")
    table = capsys.readouterr().out
    for line in ("| a file read and attached | 1000 ms | 2000 ms | **2.00** |",
                 "| a UNet step without | 2.00 s | 4.00 s | 2.00 |", "| one adds | 250 ms | 750 ms | **3.00** |",
                 "| three adds | 500 ms | 1500 ms | **3.00** |", "| merged adds | 0 ms | 0 ms |  |",
                 "| a 512 px picture with one, bf16 | 1.00 s | 2.00 s | **2.00** |",
                 "| its memory | 2.00 GiB | 3.00 GiB | **1.50** |", "| a training step | 1.00 s | 2.00 s | **2.00** |"):
        assert line in table


def test_more_adds_to_what_is_there_and_else_a_row_is_measured_anew(told: Any) -> None:
    told("--repeats", "2", "--rows", "step", "picture", "train")
    found = told("--repeats", "1", "--rows", "step", "picture", "--more")
    assert found["step"]["seconds"][THEIRS]["three"] == [5.5] * 3 * lora.ROUNDS
    assert found["picture"]["seconds"][OURS] == [1.0] * 3
    assert found["train"]["seconds"][OURS] == [1.0] * 2 and "attach" not in found
    assert told("--repeats", "1", "--rows", "step")["step"]["seconds"][OURS]["one"] == [2.25] * lora.ROUNDS
