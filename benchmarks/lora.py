"""LoRA on a full-size SD1.5 of random weights, beside peft and diffusers: `python benchmarks/lora.py --weights FOLDER`.

The weights are those of `benchmarks/weights.py`, and are made where there are none. The LoRAs are kohya's usual ones:
rank 16 beside all 264 modules of the UNet's transformers and the text encoder, in half precision. Both libraries have
a process, and take turns. What a LoRA costs is a UNet step with it less one without in the same round, the median of
all rounds; what a merged one seems to cost is the noise of that. A training step is of one new LoRA of rank 16 beside
all attentions, with AdamW; a picture is one of 512 px in bfloat16 with one LoRA, its memory that of the process. All
else is float32.

Where a machine is only to be had for minutes, calls with `--more` add up: their pairs join those of the file, which is
written after every pair.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from measure import HERE, OURS, THEIRS, in_turns, process
from speed import GIB, machine, make_weights

RESULTS = HERE / "results" / "lora.json"
ROWS = ("attach", "step", "picture", "train")
NAMES = ("style", "face", "light")
# The LoRAs worn, and whether merged; outputs of the last are compared.
WORN = {"none": (NAMES[:0], False), "merged": (NAMES, True), "one": (NAMES[:1], False), "three": (NAMES, False)}
ROUNDS = 4                                            # of all that is worn, in one process
ALIKE = 1e-3                                          # of the outputs' deviation
Seconds = dict[str, list[float]]                      # of every repeat, by library or by what is worn
Figures = dict[str, Any]                              # a row as the file has it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="where the random weights are, or are to be")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="some only; the others stay as they are")
    parser.add_argument("--side", type=int, default=32, help="of the latents (32)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each row (5)")
    parser.add_argument("--more", action="store_true", help="add to the pairs that the file has of these rows")
    parser.add_argument("--quick", action="store_true", help="a miniature, where weights are made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not (options.weights / THEIRS).exists():
        make_weights(options.weights, options.quick)
    told: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    told["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        files = make_loras(options.weights / OURS, Path(folder))
        for row in options.rows:
            had = told.get(row, {}) if options.more else {}
            for figures in MEASURED[row](options, files, had):
                told[row] = figures
                options.out.write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(lines(told)))
    return int(told.get("step", {}).get("difference", 0) > ALIKE)


def make_loras(model: Path, folder: Path) -> dict[str, str]:
    """Files as kohya's trainer writes them, in a process of its own: this one's memory counts too."""
    program = (f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import lora_files; "
               f"lora_files.make({str(model)!r}, {str(folder)!r}, {NAMES!r})")
    subprocess.run([sys.executable, "-c", program], check=True)
    return {name: str(folder / f"{name}.safetensors") for name in NAMES}


@contextmanager
def worker(options: argparse.Namespace, name: str, dtype: str = "float32") -> Iterator[Any]:
    """A process of one library, as a function that asks it."""
    side = 64 if dtype == "bfloat16" and not options.quick else options.side
    command = [sys.executable, str(HERE / "lora_worker.py"), name, str(options.weights / name), dtype, str(side)]
    with process(command, name, {}) as ask:
        yield ask


@contextmanager
def both(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A process of each."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(worker(options, name)) for name in (OURS, THEIRS)}


# ---------------------------------------------------------------- what is measured
def attached(options: argparse.Namespace, files: dict[str, str], had: Figures) -> Iterator[Figures]:
    """Seconds of reading a file and laying it on."""
    seconds = had.get("seconds", none())
    with both(options) as ask:
        for n in range(-1, 2 * options.repeats):          # the first warms up
            for name in in_turns([OURS, THEIRS], n):
                taken = ask[name]("attach", files[NAMES[n % 3]])["seconds"]
                seconds[name] += [taken] if n >= 0 else []
            if n >= 0:
                yield {"seconds": seconds, "ratio": ratio(seconds)}


def stepped(options: argparse.Namespace, files: dict[str, str], had: Figures) -> Iterator[Figures]:
    """Seconds of a UNet step by what is worn, what each adds, and how outputs differ.

    A LoRA adds a few hundredths: less than what a machine's speed changes by in minutes, so only steps of one round are
    compared. Each library has the machine's memory to itself, since what is mapped of a file may else be read again.
    """
    seconds = had.get("seconds", {name: {worn: [] for worn in WORN} for name in (OURS, THEIRS)})
    differs = had.get("difference", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for n in range(options.repeats):
            first, second = in_turns([OURS, THEIRS], n)
            with worker(options, first) as ask:
                go_round(ask, files, seconds[first])
                ask("save", f"{folder}/output.pt")
            with worker(options, second) as ask:
                go_round(ask, files, seconds[second])
                differs = max(differs, ask("compare", f"{folder}/output.pt")["difference"])
            yield {"seconds": seconds, "added": added(seconds), "difference": differs}


def go_round(ask: Any, files: dict[str, str], seconds: Seconds) -> None:
    """Steps in everything that is worn, a few times."""
    for worn, (names, merged) in [*WORN.items()] * ROUNDS:
        seconds[worn].append(ask("step", [files[one] for one in names], merged)["seconds"])


def added(seconds: dict[str, Seconds]) -> dict[str, dict[str, float]]:
    """What each adds to the step without: the median over rounds."""
    return {name: {worn: median(a - b for a, b in zip(taken, by_worn["none"], strict=True))
                   for worn, taken in by_worn.items() if worn != "none"} for name, by_worn in seconds.items()}


def drawn(options: argparse.Namespace, files: dict[str, str], had: Figures) -> Iterator[Figures]:
    """Seconds of a picture with one LoRA, and the largest memory of a process that has drawn one."""
    seconds, peak = had.get("seconds", none()), had.get("peak", {})
    for n in range(options.repeats):
        for name in in_turns([OURS, THEIRS], n):
            with worker(options, name, "bfloat16") as ask:
                answer = ask("picture", files[NAMES[0]])
            seconds[name].append(answer["seconds"])
            peak[name] = max(answer["peak"], peak.get(name, 0))
        yield with_ratios(seconds, peak)


def trained(options: argparse.Namespace, files: dict[str, str], had: Figures) -> Iterator[Figures]:
    """Seconds of a training step, and the largest memory of the process."""
    seconds, peak, sizes = had.get("seconds", none()), had.get("peak", {}), set()
    with both(options) as ask:
        for name in (OURS, THEIRS):
            sizes.add(ask[name]("prepare")["parameters"])
            ask[name]("train")
        if len(sizes) != 1:
            raise SystemExit(f"the libraries train {sizes} parameters")
        for n in range(options.repeats):
            for name in in_turns([OURS, THEIRS], n):
                answer = ask[name]("train")
                seconds[name].append(answer["seconds"])
                peak[name] = max(answer["peak"], peak.get(name, 0))
            yield with_ratios(seconds, peak)


MEASURED = {"attach": attached, "step": stepped, "picture": drawn, "train": trained}


def none() -> Seconds:
    """Nothing measured yet."""
    return {OURS: [], THEIRS: []}


def with_ratios(seconds: Seconds, peak: dict[str, int]) -> dict[str, Any]:
    return {"seconds": seconds, "peak": peak, "ratio": ratio(seconds), "memory_ratio": peak[THEIRS] / peak[OURS]}


def ratio(seconds: Seconds) -> float:
    """How many times as long as we they take: the median over pairs."""
    return median(b / a for a, b in zip(seconds[OURS], seconds[THEIRS], strict=True))


# ---------------------------------------------------------------- what is told
def lines(told: dict[str, Any]) -> Iterator[str]:
    """The table, of the rows that were measured."""
    yield "| | minisd | peft and diffusers | ratio |"
    yield "|---|---:|---:|---:|"
    if "attach" in told:
        ours, theirs = (f"{1000 * median(told['attach']['seconds'][name]):.0f} ms" for name in (OURS, THEIRS))
        yield f"| a file read and attached | {ours} | {theirs} | **{told['attach']['ratio']:.2f}** |"
    if "step" in told:
        yield from (step_line(told["step"], worn) for worn in WORN)
    for row, what in (("picture", "a 512 px picture with one, bf16"), ("train", "a training step")):
        if row in told:
            yield from lines_with_memory(told[row], what)


def lines_with_memory(row: dict[str, Any], what: str) -> Iterator[str]:
    ours, theirs = (f"{median(row['seconds'][name]):.2f} s" for name in (OURS, THEIRS))
    yield f"| {what} | {ours} | {theirs} | **{row['ratio']:.2f}** |"
    ours, theirs = (f"{row['peak'][name] / GIB:.2f} GiB" for name in (OURS, THEIRS))
    yield f"| its memory | {ours} | {theirs} | **{row['memory_ratio']:.2f}** |"


def step_line(step: dict[str, Any], worn: str) -> str:
    """A step without any; or what LoRAs add to one."""
    if worn == "none":
        ours, theirs = (median(step["seconds"][name]["none"]) for name in (OURS, THEIRS))
        return f"| a UNet step without | {ours:.2f} s | {theirs:.2f} s | {theirs / ours:.2f} |"
    ours, theirs = (step["added"][name][worn] for name in (OURS, THEIRS))
    times = "" if WORN[worn][1] else f"**{theirs / ours:.2f}**"          # merged, what is left is noise
    return f"| {worn} adds | {1000 * ours:.0f} ms | {1000 * theirs:.0f} ms | {times} |"


if __name__ == "__main__":
    sys.exit(main())
