"""What a guided step of Stable Diffusion 1.5 takes exactly and with shortcuts: `python benchmarks/approximations.py`.

Random weights at full size, one process, every way in turn; a ratio is the median over the turns. What the shortcuts
cost in pictures is measured by `python -m minisd.evaluate approximations`. Rows are added to the file in results/.

With `--compiled` the exact UNet is measured beside itself compiled, which is no approximation but as much of a choice.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import jobs  # noqa: E402
from speed import cpu, versions  # noqa: E402

from minisd.config import SD15, TINY, UNetConfig  # noqa: E402
from minisd.devices import DTYPES  # noqa: E402
from minisd.fast.compiled import compile_unet  # noqa: E402
from minisd.fast.eightbit import eight_bit  # noqa: E402
from minisd.fast.merging import merged  # noqa: E402
from minisd.fast.passes import quicken  # noqa: E402
from minisd.fast.reuse import DEEP, Outermost  # noqa: E402
from minisd.files import put  # noqa: E402
from minisd.sites import Sites  # noqa: E402
from minisd.unet import UNet  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "approximations-speed.json"
SHARES, EVERY = (0.25, 0.5), (2, 3, 5)


@dataclass(frozen=True)
class Row:
    """Seconds of one guided step in one way, and how much faster that is than exactly."""

    way: str
    dtype: str
    pixels: int
    seconds: float
    ratio: float
    turns: int


def main() -> None:
    options = parsed()
    cfg = replace(TINY, context_dim=SD15.context_dim) if options.quick else SD15
    rows = list(measured(cfg, options))
    print(table(rows))
    if not options.quick:
        write(options.out, [row for row in rows if row.way != "exact"] if options.compiled else rows)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="precision (bfloat16)")
    parser.add_argument("--side", type=int, default=64, help="latents' side: pixels over 8 (64)")
    parser.add_argument("--turns", type=int, default=5, help="of all ways (5)")
    parser.add_argument("--int8", action="store_true", help="with the weights in 8 bits, too")
    parser.add_argument("--compiled", action="store_true", help="only exactly and compiled, which takes minutes more")
    parser.add_argument("--quick", action="store_true", help="a miniature instead; not saved")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (in results/)")
    return parser.parse_args()


def measured(cfg: UNetConfig, options: argparse.Namespace) -> Iterator[Row]:
    """Every way in turn, and what follows of them for walks."""
    calls = compiled(cfg, options) if options.compiled else ways(cfg, options)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for turn in range(-1, options.turns):     # the first is not counted
            for name, call in calls.items():
                start = perf_counter()
                call()
                seconds[name] += [perf_counter() - start] if turn >= 0 else []
    whole, outermost = seconds["exact"], seconds.pop("outermost", [])
    for n in EVERY if outermost else ():
        seconds[f"reuse {n}"] = [(a + (n - 1) * b) / n for a, b in zip(whole, outermost, strict=True)]
    for name, each in seconds.items():
        ratio = median(a / b for a, b in zip(whole, each, strict=True))
        yield Row(name, options.dtype, 8 * options.side, median(each), ratio, options.turns)


def ways(cfg: UNetConfig, options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """A call of the UNet on a guided pair, or of what stands for it."""
    torch.manual_seed(jobs.SEED)
    dtype = DTYPES[options.dtype]
    unet = UNet(cfg).requires_grad_(False).eval().to(dtype)
    small = copy.deepcopy(unet) if options.int8 else None
    quicken(unet)
    given = jobs.inputs(dtype, options.side, cfg.context_dim)
    t = torch.full((2,), float(jobs.TIMESTEP))
    kept = Sites(keep=(DEEP,))
    with torch.inference_mode():
        unet(given.pair, t, given.context, sites=kept)
    outermost = Outermost(unet)

    def merging(share: float) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with merged(unet, share, options.side, options.side) if share else nullcontext():
                return unet(given.pair, t, given.context)
        return call

    calls = {"exact": merging(0), "outermost": lambda: outermost(given.pair, t, given.context, None, kept.kept[DEEP]),
             **{f"merge {share:.0%}": merging(share) for share in SHARES},
             "without guidance": lambda: unet(given.latents, t[:1], given.context[1:])}
    if small is not None:
        eight_bit(small, dtype)
        quicken(small)
        calls["int8"] = lambda: small(given.pair, t, given.context)
    return calls


def compiled(cfg: UNetConfig, options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """The UNet as it draws, and the same one compiled."""
    torch.manual_seed(jobs.SEED)
    dtype = DTYPES[options.dtype]
    unet = quicken(UNet(cfg).requires_grad_(False).eval().to(dtype))
    other = compile_unet(copy.copy(unet))             # a module of its own with the same layers
    given, t = jobs.inputs(dtype, options.side, cfg.context_dim), torch.full((2,), float(jobs.TIMESTEP))
    return {"exact": lambda: unet(given.pair, t, given.context),
            "compiled": lambda: other(given.pair, t, given.context)}


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| a guided step | dtype | pixels | seconds | times as fast |", "|---|---|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {row.way} | {row.dtype} | {row.pixels} | {row.seconds:.2f} | {row.ratio:.2f} |"
                                for row in rows)])


def write(path: Path, rows: list[Row]) -> None:
    """Whole or not at all; rows of the same way, dtype and size are replaced."""
    machine = {"cpu": cpu(), "cores": os.cpu_count(), "versions": versions()}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"machine": machine, "rows": []}
    if before["machine"] != machine:
        raise SystemExit(f"{path} is of {before['machine']}, this is {machine}: give another --out")
    found = {(row["way"], row["dtype"], row["pixels"]): row for row in (*before["rows"], *map(asdict, rows))}
    put(path, json.dumps({"machine": machine, "rows": list(found.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
