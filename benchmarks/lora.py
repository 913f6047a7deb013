"""LoRA on a full-size SD1.5 of random weights, beside peft and diffusers: `python benchmarks/lora.py --weights FOLDER`.

The weights are those of `benchmarks/weights.py`, and are made where there are none. The LoRAs are kohya's usual ones:
rank 16 beside all 264 modules of the UNet's transformers and the text encoder, in half precision. Both libraries have
a process, and take turns. What a LoRA costs is the shortest UNet step with it less the shortest without one; a
training step is of one new LoRA of rank 16 beside all attentions, with AdamW.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from measure import HERE, OURS, THEIRS, in_turns, process
from speed import GIB, machine, make_weights

RESULTS = HERE / "results" / "lora.json"
ROWS = ("attach", "step", "train")
NAMES = ("style", "face", "light")
# The LoRAs worn, and whether merged.
WORN = {"none": (NAMES[:0], False), "one": (NAMES[:1], False), "three": (NAMES, False), "merged": (NAMES, True)}
ALIKE = 1e-3                                          # of the outputs' deviation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="where the random weights are, or are to be")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="some only; the others stay as they are")
    parser.add_argument("--side", type=int, default=32, help="of the latents (32)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each row (5)")
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
            told[row] = {"attach": attached, "step": stepped, "train": trained}[row](options, files)
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
def both(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A process of each library, as functions that ask them."""
    commands = {name: [sys.executable, str(HERE / "lora_worker.py"), name, str(options.weights / name),
                       str(options.side)] for name in (OURS, THEIRS)}
    with ExitStack() as stack:
        yield {name: stack.enter_context(process(command, name, {})) for name, command in commands.items()}


# ---------------------------------------------------------------- what is measured
def attached(options: argparse.Namespace, files: dict[str, str]) -> dict[str, Any]:
    """Seconds of reading a file and laying it on."""
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    with both(options) as ask:
        for n in range(-1, 2 * options.repeats):          # the first warms up
            for name in in_turns([OURS, THEIRS], n):
                taken = ask[name]("attach", files[NAMES[n % 3]])["seconds"]
                seconds[name] += [taken] if n >= 0 else []
    return {"seconds": seconds, "ratio": ratio(seconds)}


def stepped(options: argparse.Namespace, files: dict[str, str]) -> dict[str, Any]:
    """Seconds of a UNet step by what is worn, what each adds, and how outputs differ.

    A LoRA adds a few hundredths: less than what else a machine does. That only ever adds, so the shortest steps count.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {worn: [] for worn in WORN} for name in (OURS, THEIRS)}
    with both(options) as ask:
        for n in range(options.repeats):
            for name, (worn, (names, merged)) in product(in_turns([OURS, THEIRS], n), WORN.items()):
                seconds[name][worn].append(ask[name]("step", [files[one] for one in names], merged)["seconds"])
        with tempfile.TemporaryDirectory() as folder:
            for name in (OURS, THEIRS):
                ask[name]("step", list(files.values()), False)
            ask[THEIRS]("save", f"{folder}/output.pt")
            differs = ask[OURS]("compare", f"{folder}/output.pt")["difference"]
    return {"seconds": seconds, "added": added(seconds), "difference": differs}


def added(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """What each adds to the step without."""
    return {name: {worn: min(taken) - min(by_worn["none"]) for worn, taken in by_worn.items() if worn != "none"}
            for name, by_worn in seconds.items()}


def trained(options: argparse.Namespace, files: dict[str, str]) -> dict[str, Any]:
    """Seconds of a training step, and the largest memory of the process."""
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    peak, sizes = {}, set()
    with both(options) as ask:
        for name in (OURS, THEIRS):
            sizes.add(ask[name]("prepare")["parameters"])
            ask[name]("train")
        for n in range(options.repeats):
            for name in in_turns([OURS, THEIRS], n):
                answer = ask[name]("train")
                seconds[name].append(answer["seconds"])
                peak[name] = answer["peak"]
    if len(sizes) != 1:
        raise SystemExit(f"the libraries train {sizes} parameters")
    return {"seconds": seconds, "peak": peak, "ratio": ratio(seconds), "memory_ratio": peak[THEIRS] / peak[OURS]}


def ratio(seconds: dict[str, list[float]]) -> float:
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
    if "train" in told:
        train = told["train"]
        ours, theirs = (f"{median(train['seconds'][name]):.2f} s" for name in (OURS, THEIRS))
        yield f"| a training step | {ours} | {theirs} | **{train['ratio']:.2f}** |"
        ours, theirs = (f"{train['peak'][name] / GIB:.2f} GiB" for name in (OURS, THEIRS))
        yield f"| memory of training | {ours} | {theirs} | **{train['memory_ratio']:.2f}** |"


def step_line(step: dict[str, Any], worn: str) -> str:
    """A step without any; or what LoRAs add to one."""
    if worn == "none":
        ours, theirs = (min(step["seconds"][name]["none"]) for name in (OURS, THEIRS))
        return f"| a UNet step without | {ours:.2f} s | {theirs:.2f} s | {theirs / ours:.2f} |"
    ours, theirs = (step["added"][name][worn] for name in (OURS, THEIRS))
    times = "" if WORN[worn][1] else f"**{theirs / ours:.2f}**"          # merged, what is left is noise
    return f"| {worn} adds | {1000 * ours:.0f} ms | {1000 * theirs:.0f} ms | {times} |"


if __name__ == "__main__":
    sys.exit(main())
