"""A full-size SD1.5 with random weights: one file to diffusers and back, in bounded memory, layer by layer."""

import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from comparison import random_model
from families import same

from minisd import store
from minisd.config import ModelConfig
from weights_convert.model import Model, Part
from weights_convert.write import write

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")

GIB = 2 ** 20                                     # in KiB, as /proc counts


def convert(source, target, to) -> tuple[float, float]:
    """Seconds, and the largest memory of its own in GiB: pages of the mapped file are not counted."""
    start, peak = time.perf_counter(), 0.0
    program = subprocess.Popen([sys.executable, "-m", "weights_convert", str(source), str(target), "--to", to])
    status = Path(f"/proc/{program.pid}/status")

    def watch() -> None:
        nonlocal peak
        while program.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+)", status.read_text()) if status.exists() else None
            peak = max(peak, int(found[1]) / GIB if found else 0.0)
            time.sleep(0.05)
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert program.wait() == 0
    watcher.join()
    return time.perf_counter() - start, peak


def test_both_ways_and_layer_by_layer(tmp_path, measured):
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("needs 20 GB of disk")
    cfg = ModelConfig()
    parts = {name: Part(name, "ours", build.args[0], random_model(build.func, build.args[0]).state_dict())
             for name, build in store.parts(cfg).items()}
    one, folder, back = tmp_path / "one.safetensors", tmp_path / "folder", tmp_path / "back.safetensors"
    write(Model("memory", "native", parts, cfg, ()), one, "ldm")
    assert one.stat().st_size > 4.2e9
    del parts
    for source, target, to in ((one, folder, "diffusers"), (folder, back, "ldm")):
        seconds, peak = convert(source, target, to)
        measured(f"full size to {to}: {seconds:.0f} s, {peak:.2f} GiB of its own", 0.0)
        assert peak < 1.0
    assert same(one, back)
    back.unlink()
    done = subprocess.run([sys.executable, "-m", "weights_convert", "parity", str(one), "diffusers"],
                          capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("first layer over 1e-05: none"), last
    measured("full size, parity beside diffusers", float(last.split()[-1]))
