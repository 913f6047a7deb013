"""benchmarks/speed.py: one row of a miniature, from weights to JSON."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SPEED = Path(__file__).parent.parent.parent / "benchmarks" / "speed.py"


@pytest.mark.parity
@pytest.mark.skipif(find_spec("diffusers") is None, reason="compares with diffusers: pip install minisd[reference]")
def test_a_picture_in_miniature(tmp_path: Path) -> None:
    """Weights for both libraries, a process of each, their pictures compared: 15 s, most of it diffusers' import."""
    out = tmp_path / "speed.json"
    done = subprocess.run([sys.executable, str(SPEED), "--quick", "--repeats", "1", "--rows", "picture fp32",
                           "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row, = json.loads(out.read_text())["rows"]
    assert row["difference"] <= row["allowed"] and row["ratio"] > 0 and row["peak"]["minisd"] > 0
