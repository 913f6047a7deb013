"""minisd beside diffusers on the same random weights: `python benchmarks/speed.py`, about a quarter of an hour.

Where it says tuned, diffusers has channels_last and the allocator's settings that minisd has.
Each library has its own process and its own defaults, and they are asked in turns. Ratios are medians over the pairs:
above 1, minisd is ahead. Outputs are compared once in every row; where they differ, the exit code is 1.

Where a machine is only to be had for minutes, `--apart --resume --rows ROW --weights FOLDER` takes one measurement of
one library and stops: calls of it add up to pairs.
"""

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from measure import HERE, OURS, THEIRS, TUNED, Bench, Result, Row

RESULTS = HERE / "results"
GIB = 2 ** 30
# Half precision differs as much from itself in another order of adding up; guidance multiplies it by about ten.
FP32, BF16 = 1e-3, 0.2
ROWS = (
    Row("import", "import", fresh=True, pairs=2),
    Row("load fp32", "load", fresh=True),
    Row("text fp32", "text", pairs=5, allowed=FP32),
    Row("text bf16", "text", "bfloat16", pairs=5, allowed=BF16),
    Row("unet fp32", "unet", tuned=True, allowed=FP32),
    Row("unet bf16", "unet", "bfloat16", tuned=True, allowed=BF16),
    Row("vae fp32", "vae", tuned=True, allowed=FP32),
    Row("vae bf16", "vae", "bfloat16", tuned=True, allowed=BF16),
    Row("picture bf16", "picture", "bfloat16", warm=False, allowed=BF16),
    Row("picture fp32", "picture", warm=False, allowed=10 * FP32),
    Row("picture of 20 steps bf16", "long", "bfloat16", warm=False, long=True, allowed=BF16),
)
GFLOP = {"unet": 1606.5, "vae": 2514.5}               # of a UNet step on a pair and of a decoding, at 512 pixels


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))      # so that the weights are removed then as well
    rows = chosen(options.rows or ())
    out = options.out or (None if options.quick else RESULTS / f"speed-{slug(cpu())}.json")
    results = kept(out) if out and (options.resume or options.rows) else []
    print(f"{cpu()}, {os.cpu_count()} cores; {versions()}\n", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="minisd-speed-", dir=options.scratch) as folder:
        weights = options.weights or Path(folder)
        if not (weights / THEIRS).exists():
            make_weights(weights, options.quick)
        bench = Bench(weights, 8 if options.quick else 64, options.repeats)
        for row in rows:
            had = next((result for result in results if result.row == row.name), None) if options.resume else None
            if had and had.whole and not options.apart:
                continue
            result = measured(bench, row, had, options.apart)
            results = ordered([*(one for one in results if one.row != row.name), result])
            print(line(result) if result.whole else f"{row.name}: {result.seconds}", file=sys.stderr, flush=True)
            if out:
                write(out, results)
    results = [result for result in results if result.whole]
    print(table(results))
    if not (options.quick or options.apart):
        print("\n" + "\n".join(shares(results, peaks())))
    return report(results)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a miniature instead of Stable Diffusion 1.5; not saved")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW",
                        help="some only, or one that takes long; of the file the others stay: "
                             + ", ".join(row.name for row in ROWS))
    parser.add_argument("--repeats", type=int, default=3, help="pairs per row (3); short jobs take several times more")
    parser.add_argument("--out", type=Path, help="the JSON file, written after every row; by default in results/")
    parser.add_argument("--resume", action="store_true", help="go on with what the JSON file has of these rows")
    parser.add_argument("--apart", action="store_true",
                        help="of each of these rows the library that was measured less, once; needs --weights")
    parser.add_argument("--weights", type=Path, help="keep the random weights (8.5 GB) in this folder, or find them")
    parser.add_argument("--scratch", type=Path, help="where else they are for the time being (the system's place)")
    options = parser.parse_args()
    if options.apart and not (options.weights and options.rows):
        parser.error("--apart: give --rows, and --weights for what is kept from one call to the next")
    return options


def chosen(names: Collection[str]) -> list[Row]:
    """The rows of these names; without any, all but the long ones."""
    return [row for row in ROWS if (row.name in names if names else not row.long)]


def measured(bench: Bench, row: Row, had: Result | None, apart: bool) -> Result:
    """The row as a whole; or apart, one measurement more than what was had."""
    if not apart:
        return bench.measure(row)
    result = had or Result(row.name, difference=math.inf, allowed=row.allowed)    # until outputs were compared
    bench.once(row, result)
    return result


def make_weights(folder: Path, quick: bool) -> None:
    subprocess.run([sys.executable, str(HERE / "weights.py"), str(folder), *(["--quick"] if quick else [])],
                   check=True, stdout=subprocess.DEVNULL)


# ---------------------------------------------------------------- what came out
HEAD = ("row", "minisd", "diffusers", "ratio", "tuned", "ratio", "minisd GiB", "diffusers GiB", "ratio",
        "difference")


def line(result: Result) -> str:
    """A row of the table."""
    tuned = TUNED in result.seconds
    cells = [result.row, shown(result.time(OURS)), shown(result.time(THEIRS)), f"**{result.speed():.2f}**",
             shown(result.time(TUNED)) if tuned else "", f"{result.speed(TUNED):.2f}" if tuned else "",
             f"{result.peak[OURS] / GIB:.2f}", f"{result.peak[THEIRS] / GIB:.2f}", f"**{result.memory():.2f}**",
             f"{result.difference:.1g}" if result.same else f"DIFFER: {result.difference:.2g}"]
    return f"| {' | '.join(cells)} |"


def shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def ordered(results: Iterable[Result]) -> list[Result]:
    """As the table has them, whatever was measured first."""
    names = [row.name for row in ROWS]
    return sorted(results, key=lambda result: names.index(result.row))


def table(results: Iterable[Result]) -> str:
    """All rows as Markdown."""
    rule = "|".join(["---"] + ["---:"] * (len(HEAD) - 1))
    return "\n".join([f"| {' | '.join(HEAD)} |", f"|{rule}|", *map(line, results)])


def report(results: Iterable[Result]) -> int:
    """Says where we are behind; the exit code is 1 where the outputs differ."""
    results = list(results)
    for result in results:
        for what, ratio in (("time", result.speed()), ("memory", result.memory())):
            if ratio < 1:
                print(f"behind: {result.row}, {what} {ratio:.2f}", file=sys.stderr)
        if not result.same:
            print(f"{result.row}: the outputs differ by {result.difference:.3g} of their deviation, allowed is "
                  f"{result.allowed:g}: nothing was compared there", file=sys.stderr)
    return int(not all(result.same for result in results))


def shares(results: Iterable[Result], peaks: dict[str, dict[str, float]]) -> Iterator[str]:
    """How near each network comes to its arithmetic at the machine's best pace."""
    rows = {row.name: row for row in ROWS}
    for result in results:
        row = rows[result.row]
        if row.job in GFLOP and row.dtype in peaks:
            best, pace = max(peaks[row.dtype].values()), GFLOP[row.job] / result.time(OURS)
            yield (f"{result.row}: {pace:.0f} GFLOP/s, {pace / best:.0%} of the {best:.0f} that single layers reach "
                   "on this machine")


def write(path: Path, results: Iterable[Result]) -> None:
    """Whole or not at all."""
    rows = [asdict(result) | ({"ratio": result.speed(), "memory_ratio": result.memory()} if result.whole else {})
            for result in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def kept(path: Path) -> list[Result]:
    """Rows of earlier runs of the same versions on the same machine."""
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["machine"] != machine():
        raise SystemExit(f"{path} is of {data['machine']}, this is {machine()}: give another --out")
    return [Result(**{key: row[key] for key in Result.__dataclass_fields__}) for row in data["rows"]]


# ---------------------------------------------------------------- the machine
def machine() -> dict[str, str | int | None]:
    return {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions()}


def cpu() -> str:
    """The processor's name, and whether it multiplies bfloat16 itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return " ".join([name, *(flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags)])


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def peaks() -> dict[str, dict[str, float]]:
    """GFLOP/s of single layers, by dtype and kind, in a process of its own."""
    found = subprocess.run([sys.executable, str(HERE / "peaks.py")], check=True, stdout=subprocess.PIPE)
    return json.loads(found.stdout)


def versions() -> str:
    names = ("torch", "diffusers", "transformers")
    return ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
