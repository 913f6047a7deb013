"""Loading a full-size SD1.5 beside diffusers, and converting it: `python benchmarks/load.py --weights FOLDER`.

Random weights (19 GB) are written there once. Every time is of a fresh process behind its imports, with the files warm;
the libraries take turns, and a ratio above 1 says that minisd is ahead. A conversion's memory is its own: pages of the
mapped source are not counted.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from measure import HERE, OURS, THEIRS, Bench, Result, Row
from speed import GIB, machine, shown

RESULTS = HERE / "results" / "load.json"
LAYOUTS = {"native": "native", "ldm": "ldm.safetensors", "diffusers": "diffusers"}
HEAD = ("files", "as", "layout", "minisd", "diffusers", "ratio", "minisd GiB", "diffusers GiB", "ratio")


class Load(NamedTuple):
    """Files of a precision and a layout, loaded as a dtype; diffusers always reads its own folder."""

    files: str
    dtype: str
    layout: str

    @property
    def name(self) -> str:
        return " ".join(self)


LOADS = (*(Load("fp32", dtype, layout) for dtype in ("float32", "bfloat16") for layout in LAYOUTS),
         *(Load("fp16", dtype, layout) for dtype in ("float16", "float32", "bfloat16")
           for layout in ("native", "diffusers")))
CONVERSIONS = {"fp32 ldm to diffusers": ("--to", "diffusers"),
               "fp32 ldm to native fp16": ("--to", "native", "--dtype", "fp16")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="where the weights are, or are to be")
    parser.add_argument("--rows", nargs="*", choices=[*(load.name for load in LOADS), *CONVERSIONS], metavar="ROW",
                        help="some only; those measured before stay in the results")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each row (5)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.weights.exists():
        make(options.weights)
    told = {"machine": machine(), "loading": {}, "converting": {}}
    if options.out.exists():
        told |= json.loads(options.out.read_text())
    for row in options.rows if options.rows is not None else [*(load.name for load in LOADS), *CONVERSIONS]:
        if row in CONVERSIONS:
            told["converting"][row] = conversion(options.weights / "fp32" / LAYOUTS["ldm"], CONVERSIONS[row])
            print(row, told["converting"][row], flush=True)
        else:
            told["loading"][row] = measured(next(load for load in LOADS if load.name == row), options)
            print(line(row, told["loading"][row]), flush=True)
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join([f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|",
                     *(line(row, figures) for row, figures in told["loading"].items())]))


def make(folder: Path) -> None:
    """The same random weights in every layout and precision."""
    import torch

    from minisd.config import ModelConfig
    from minisd.store import Blank, parts
    from weights_convert.__main__ import DTYPES
    from weights_convert.model import Model, Part
    from weights_convert.sources import open_model
    from weights_convert.write import write
    made = {}
    for name, build in parts(ModelConfig()).items():
        with Blank():
            module = build().requires_grad_(False)
        for weights in module.parameters():
            weights.uniform_(-0.01, 0.01)
        made[name] = Part(name, "ours", module.cfg, module.state_dict())
    source = folder / "fp32" / LAYOUTS["native"]
    write(Model("memory", "native", made, ModelConfig(), ()), source, "native")
    made.clear()
    for precision in ("fp32", "fp16"):
        for to, file in LAYOUTS.items():
            if (folder / precision / file) != source:
                write(open_model(source), folder / precision / file, to, getattr(torch, DTYPES[precision]))


def measured(load: Load, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of every pair, peak memory, and the ratios."""
    files = options.weights.resolve() / load.files
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / OURS).symlink_to(files / LAYOUTS[load.layout])
        (Path(folder) / THEIRS).symlink_to(files / LAYOUTS["diffusers"])
        bench, row = Bench(Path(folder), 8, options.repeats), Row(load.name, "load", load.dtype, fresh=True)
        Bench(Path(folder), 8, 1).measure(row)        # so that the files are warm
        result: Result = bench.measure(row)
    if not result.same:
        raise SystemExit(f"{load.name}: the libraries count different numbers of parameters")
    return {"seconds": result.seconds, "peak": result.peak, "ratio": result.speed(), "memory_ratio": result.memory()}


def line(row: str, figures: dict[str, object]) -> str:
    result = Result(row, figures["seconds"], figures["peak"])  # type: ignore[arg-type]
    cells = [*row.split(), shown(result.time(OURS)), shown(result.time(THEIRS)), f"**{result.speed():.2f}**",
             f"{result.peak[OURS] / GIB:.2f}", f"{result.peak[THEIRS] / GIB:.2f}", f"**{result.memory():.2f}**"]
    return f"| {' | '.join(cells)} |"


def conversion(source: Path, options: tuple[str, ...]) -> dict[str, float]:
    """Seconds of the program, and the largest memory of its own in GiB."""
    start, peak = time.perf_counter(), [0.0]
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        program = subprocess.Popen([sys.executable, "-m", "weights_convert", str(source), f"{folder}/out", *options],
                                   stdout=subprocess.DEVNULL, cwd=HERE.parent)
        status = Path(f"/proc/{program.pid}/status")

        def watch() -> None:
            while program.poll() is None:
                found = re.search(r"RssAnon:\s+(\d+)", status.read_text())
                peak[0] = max(peak[0], int(found[1]) / 2 ** 20 if found else 0.0)
                time.sleep(0.02)
        watcher = threading.Thread(target=watch)
        watcher.start()
        code = program.wait()
        watcher.join()
        seconds = time.perf_counter() - start
    if code:
        raise SystemExit(f"the conversion ended with {code}")
    return {"seconds": round(seconds, 2), "own_gib": round(peak[0], 3)}


if __name__ == "__main__":
    main()
