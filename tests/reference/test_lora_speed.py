"""benchmarks/lora.py: a UNet step of a miniature with LoRAs beside it, from weights to JSON."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

LORA = Path(__file__).parent.parent.parent / "benchmarks" / "lora.py"


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.skipif(find_spec("peft") is None, reason="compares with peft: pip install minisd[reference]")
def test_every_row_in_miniature(tmp_path: Path) -> None:
    """Weights and LoRAs for both libraries, a process of each, their outputs compared: most of it imports."""
    out = tmp_path / "lora.json"
    done = subprocess.run([sys.executable, str(LORA), "--quick", "--weights", str(tmp_path), "--repeats", "1", "--side",
                           "8", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["step"]["difference"] < 1e-3 and set(told["step"]["added"]["minisd"]) == {"one", "three", "merged"}
    assert all(told[row]["ratio"] > 0 for row in ("attach", "picture", "train"))
