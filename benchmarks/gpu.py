"""minisd beside diffusers on a GPU: `python benchmarks/gpu.py`, about a quarter of an hour, half of it compilers'.

Both draw with the same random weights of Stable Diffusion 1.5 in half precision: plainly, and minisd compiled,
diffusers with what its guide to speed advises. Then both train. Contestants that draw take turns, and figures are
medians; those that train come one after the other, for the memory. Times end when the GPU has finished; memory is what
PyTorch holds for that contestant. Where the networks' outputs differ, the exit code is 1.

With `--device cpu --quick` everything runs in miniature on the processor, and graphs are traced without a compiler.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_drawing import DRAWING, Place
from gpu_rows import ALLOWED, PICTURE, ROWS, STEP, Result, Row, table, verdicts
from gpu_training import DISTILLATION, FINETUNING, TRAINING
from measure import QUIET, THEIRS, in_turns
from meter import Meter
from speed import RESULTS, machine, make_weights, slug
from torch import Tensor
from worker import difference

os.environ.update(QUIET)
CALLS = 20                                            # of the UNet, that are timed together
WARM = 3                                              # runs that are not: a graph is recorded in the second


def main(args: Sequence[str] | None = None) -> int:
    options = parsed(args)
    with tempfile.TemporaryDirectory(prefix="minisd-gpu-", dir=options.scratch) as folder:
        weights = options.weights or Path(folder)
        if not (weights / THEIRS).exists():
            make_weights(weights, options.quick)
        place = Place(weights, torch.device(options.device), options.dtype, 8 if options.quick else 64)
        bench = Bench(place, options, Path(folder))
        results = [*bench.drawing(), *bench.training()]
    print(table(results) + "\n\n" + "\n".join(verdicts(results)))
    out = options.out or (None if options.quick else RESULTS / f"gpu-{slug(bench.meter.name())}.json")
    if out:
        told = {"machine": machine() | {"gpu": bench.meter.name(), "dtype": options.dtype},
                "rows": [asdict(result) | {"values": {name: result.value(name) for name in result.seconds}}
                         for result in results]}
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(any(not apart <= ALLOWED[options.dtype] for result in results for apart in result.difference.values()))


def parsed(args: Sequence[str] | None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a miniature instead of Stable Diffusion 1.5; not saved")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=ALLOWED, default="float16", help="of what draws (float16)")
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", default=names, help=", ".join(names))
    parser.add_argument("--contestants", nargs="+", choices=[*DRAWING, *TRAINING], default=[*DRAWING, *TRAINING])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the JSON file; by default in results/")
    parser.add_argument("--weights", type=Path, help="keep the random weights (8.5 GB) in this folder, or find them")
    parser.add_argument("--scratch", type=Path, help="where else they are for the time being (the system's place)")
    return parser.parse_args(args)


class Bench:
    """Builds contestants, asks them in turns, and notes what they take."""

    def __init__(self, place: Place, options: argparse.Namespace, scratch: Path):
        self.place, self.options, self.scratch = place, options, scratch
        self.meter = Meter(place.device)
        self.rows = [row for row in ROWS if row.name in options.rows]

    def result(self, row: Row) -> Result:
        return Result(row.name, row.unit, row.few if self.options.quick else row.count, goals=row.goals)

    def drawing(self) -> Iterator[Result]:
        """All that draw are there together, and their weights are told apart."""
        rows = [row for row in self.rows if row.job in (STEP, PICTURE)]
        made, weights = {}, {}
        for name in [name for name in DRAWING if rows and name in self.options.contestants]:
            before = self.meter.begin()
            made[name] = DRAWING[name](self.place)
            weights[name] = self.meter.begin() - before
        for row in rows:
            result = self.result(row)
            self.turns(row, result, {name: getattr(one, row.job)(result.count) for name, one in made.items()}, weights)
            yield result

    @torch.inference_mode()
    def turns(self, row: Row, result: Result, runs: dict[str, Callable[[], Any]], weights: dict[str, int]) -> None:
        """Everyone's outputs compared, then everyone's time, in turns."""
        for _ in range(WARM):
            answers = {name: run() for name, run in runs.items()}
        result.difference = apart(answers) if row.job == STEP else {}
        calls = CALLS if row.job == STEP and not self.options.quick else 1
        for name in (name for n in range(self.options.repeats) for name in in_turns(list(runs), n)):
            self.time(result, name, runs[name], calls, weights[name])

    def training(self) -> Iterator[Result]:
        """One after the other, each gone before the next comes."""
        for row in [row for row in self.rows if row.job in (DISTILLATION, FINETUNING)]:
            result = self.result(row)
            for name in [name for name in TRAINING if name in self.options.contestants]:
                with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
                    self.train(row, result, name, Path(scratch))
                gc.collect()
            yield result

    def train(self, row: Row, result: Result, name: str, scratch: Path) -> None:
        before = self.meter.begin()
        run = TRAINING[name](row.job, self.place, scratch, result.count)
        own = self.meter.begin() - before
        for _ in range(self.options.repeats):
            self.time(result, name, run, 1, own)

    def time(self, result: Result, name: str, run: Callable[[], Any], calls: int, own: int) -> None:
        """Seconds of a call, and the most memory; of what is held before, `own` bytes are this one's."""
        before = self.meter.begin()
        seconds = self.meter.seconds(lambda: [run() for _ in range(calls)]) / calls
        result.add(name, seconds, self.meter.peak() - before + own)
        print(f"{result.row}, {name}: {seconds:.4g} s", file=sys.stderr)


def apart(answers: dict[str, Tensor]) -> dict[str, float]:
    """How far everyone's output is from plain diffusers', in units of its deviation."""
    if THEIRS not in answers:
        return {}
    theirs = answers[THEIRS].float().cpu()
    return {name: difference(answer.float().cpu(), theirs) for name, answer in answers.items() if name != THEIRS}


if __name__ == "__main__":
    sys.exit(main())
