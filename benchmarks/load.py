"""Loading and converting a full-size SD1.5 in float32, beside diffusers: seconds, ratios and peak memory, as JSON.

`python benchmarks/load.py [--scratch FOLDER]` writes random weights (13 GB of disk, removed afterwards) and
`benchmarks/results/load.json`. Every figure is of a fresh process with the files warm, after its imports.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from minisd.config import ModelConfig
from minisd.store import Blank, parts
from weights_convert.model import Model, Part
from weights_convert.sources import open_model
from weights_convert.write import write

RESULTS = Path(__file__).parent / "results" / "load.json"
TIMED = "import sys, time; {imports}; start = time.perf_counter(); {call}; print(time.perf_counter() - start)"
MINISD = ("import minisd.store, minisd.pipeline", "minisd.load(sys.argv[1], device='cpu', dtype='{dtype}')")
DIFFUSERS = ("import torch, transformers; from diffusers import StableDiffusionPipeline as P; "
             "P.from_pretrained; import diffusers.pipelines.stable_diffusion",
             "P.from_pretrained(sys.argv[1], torch_dtype=torch.{dtype}, local_files_only=True)")
REPEATS = 3


def random_checkpoint(folder: Path) -> dict[str, Path]:
    """The same random weights in every layout."""
    cfg, made = ModelConfig(), {}
    for name, build in parts(cfg).items():
        with Blank():
            module = build().requires_grad_(False)
        for weights in module.parameters():
            weights.uniform_(-0.01, 0.01)
        made[name] = Part(name, "ours", build.args[0], module.state_dict())
    paths = {"ldm": folder / "sd15.safetensors", "native": folder / "native", "diffusers": folder / "diffusers"}
    model = Model("memory", "native", made, cfg, ())
    for to, path in paths.items():
        write(model, path, to)
        model = open_model(paths["ldm"])
    return paths


def seconds(program: tuple[str, str], path: Path, dtype: str) -> float:
    """The median of a few fresh processes."""
    code = TIMED.format(imports=program[0], call=program[1].format(dtype=dtype))
    runs = [float(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
                  .stdout.split()[-1]) for _ in range(REPEATS)]
    return statistics.median(runs)


def conversion(source: Path, target: Path, *options: str) -> dict[str, float]:
    """Seconds, and the largest memory of its own in GiB: pages of the mapped source are not counted."""
    start, peak = time.perf_counter(), [0.0]
    program = subprocess.Popen([sys.executable, "-m", "weights_convert", str(source), str(target), *options],
                               stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{program.pid}/status")

    def watch() -> None:
        while program.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+)", status.read_text())
            peak[0] = max(peak[0], int(found[1]) / 2 ** 20 if found else 0.0)
            time.sleep(0.02)
    watcher = threading.Thread(target=watch)
    watcher.start()
    program.wait()
    watcher.join()
    return {"seconds": round(time.perf_counter() - start, 2), "own_gib": round(peak[0], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a fast disk")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().scratch) as scratch:
        paths = random_checkpoint(Path(scratch))
        told: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine()}
        for dtype in ("float32", "bfloat16"):
            theirs = seconds(DIFFUSERS, paths["diffusers"], dtype)
            ours = {layout: seconds(MINISD, path, dtype) for layout, path in paths.items()}
            told[dtype] = {"from_pretrained_s": round(theirs, 3)} | {
                f"{layout}_s": round(own, 3) for layout, own in ours.items()} | {
                f"{layout}_ratio": round(theirs / own, 2) for layout, own in ours.items()}
        told["ldm to diffusers"] = conversion(paths["ldm"], Path(scratch) / "a", "--to", "diffusers")
        told["ldm to native fp16"] = conversion(paths["ldm"], Path(scratch) / "b", "--to", "native", "--dtype", "fp16")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
