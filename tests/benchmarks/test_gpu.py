"""benchmarks/gpu.py: what it says of its goals, and that all of it runs, in miniature and on the processor."""

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_rows  # noqa: E402
from gpu_drawing import DRAWING  # noqa: E402
from gpu_training import TRAINING  # noqa: E402
from measure import OURS, THEIRS  # noqa: E402
from speed import make_weights  # noqa: E402

HERE = ["--device", "cpu", "--quick", "--dtype", "float32", "--repeats", "1"]
PLAIN = ["--contestants", OURS, THEIRS]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    make_weights(folder, quick=True)
    return folder


def run(weights: Path, out: Path, *told: str) -> dict[str, dict]:
    """Rows by name; the networks must agree."""
    assert gpu.main([*HERE, "--weights", str(weights), "--out", str(out), *told]) == 0
    return {row["row"]: row for row in json.loads(out.read_text())["rows"]}


def test_drawing_in_miniature(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step, picture = "UNet, guided, 4 pictures", "a picture, 20 steps"
    rows = run(weights, tmp_path / "gpu.json", "--rows", step, picture, *PLAIN)
    assert rows.keys() == {step, picture}
    assert 0 <= rows[step]["difference"][OURS] < 1e-4
    assert all(len(row["seconds"][name]) == 1 and row["values"][name] > 0 for row in rows.values()
               for name in (OURS, THEIRS))
    assert capsys.readouterr().out.count(f"| {OURS} |") == 2


@pytest.mark.slow
def test_everything_in_miniature(weights: Path, tmp_path: Path) -> None:
    rows = run(weights, tmp_path / "gpu.json")
    assert [row.name for row in gpu_rows.ROWS] == list(rows)
    for row in rows.values():
        assert set(row["values"]) == set(TRAINING if row["unit"] == "img/s" else DRAWING)


def test_goals_are_held_against_what_is_measured() -> None:
    step, picture = (next(row for row in gpu_rows.ROWS if row.name == name)
                     for name in ("UNet, guided, 1 picture", "a picture, 50 steps"))
    results = [gpu_rows.Result(row.name, row.unit, 1, goals=row.goals) for row in (step, picture)]
    for seconds in (0.02, 0.01, 0.015):
        results[0].add(OURS, seconds, 1 << 30)
        results[1].add(gpu_rows.COMPILED, 40 * seconds, 1 << 30)
    assert results[0].value(OURS) == pytest.approx(1 / 0.015) and results[0].reached(OURS)
    assert results[1].value(gpu_rows.COMPILED) == pytest.approx(0.6) and not results[1].reached(gpu_rows.COMPILED)
    said = list(gpu_rows.verdicts(results))
    assert said[0].startswith("reached: UNet") and said[1].startswith("NOT reached: a picture")
    assert "| 66.7 it/s |" in gpu_rows.table(results)
