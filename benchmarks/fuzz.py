"""Checkpoint files damaged at random, and what the reader makes of them: `python benchmarks/fuzz.py --count 10000`.

Each kind of file is read in a process of its own, which records what an audit hook sees. "wrong" are weights that were
loaded and differ: possible only where nothing tells them from the right ones. Leaves with 1 if anything else is found.
"""

import argparse
import codecs
import hashlib
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from minisd.errors import BAD_FILE, MinisdError
from weights_convert.read import read_file

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fuzz.json"
OUTCOMES = ("refused", "identical", "wrong", "other exception", "hang", "crash", "execution")
KINDS = {
    "safetensors": "bytes of the file",
    "safetensors, hash known": "bytes of the file, with FILE.sha256 beside it",
    "ckpt": "bytes of the file",
    "ckpt, its pickle": "bytes of data.pkl, in an archive whose checksums are right again",
}
MUST_BE_RIGHT = ("safetensors, hash known", "ckpt")
HANG_SECONDS = 2                                   # of processor time
# What reading a file may do: the rest that the audit hook sees is counted as an execution.
HARMLESS = {"open", "mmap.__new__", "_thread.start_new_thread"}
CODECS = ("cp437", "unicode_escape", "raw_unicode_escape", "ascii", "latin-1")     # imported when first needed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FIRST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child[0], range(int(options.child[1]), options.count), options.seed)
    table = {kind: measured(kind, options.count, options.seed) for kind in options.kinds}
    print(f"{'':<24}" + "".join(f"{name:>17}" for name in OUTCOMES) + f"{'seconds':>10}{'MiB more':>10}")
    for kind, row in table.items():
        print(f"{kind:<24}" + "".join(f"{row[name]:>17,}" for name in OUTCOMES)
              + f"{row['seconds']:>10.1f}{row['MiB more']:>10.0f}")
    options.out.write_text(json.dumps({"count": options.count, "seed": options.seed, "kinds": table}, indent=1) + "\n")
    bad = sum(row[name] for row in table.values() for name in OUTCOMES[3:])
    return int(bad + sum(table[kind]["wrong"] for kind in MUST_BE_RIGHT if kind in table) > 0)


def measured(kind: str, count: int, seed: int) -> dict[str, Any]:
    """Outcomes of all files of a kind; a process that dies is counted, and another goes on behind that file."""
    total, first, start, memory = Counter[str](), 0, time.perf_counter(), 0.0
    while first < count:
        command = [sys.executable, __file__, "--count", str(count), "--seed", str(seed), "--child", kind, str(first)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        for line in process.stdout.splitlines():
            number, outcome, more = line.split("\t")
            first, memory = int(number) + 1, max(memory, float(more))
            total[outcome] += 1
        if first < count:
            total["crash"] += 1
            first += 1
    return {**{name: total[name] for name in OUTCOMES}, "seconds": round(time.perf_counter() - start, 1),
            "MiB more": round(memory, 1)}


def child(kind: str, numbers: range, seed: int) -> int:
    """Read the damaged files of these numbers and print an outcome for each."""
    good, weights = original(kind)
    right = {name: (tensor.dtype, tensor.shape, raw(tensor)) for name, tensor in weights.items()}
    seen: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        path = Path(folder) / "file"
        if kind.endswith("hash known"):
            path.with_name("file.sha256").write_text(hashlib.sha256(good).hexdigest() + "  file\n")
        path.write_bytes(good)
        read_file(path)                            # imports what it needs, before anybody looks
        for name in CODECS:
            codecs.lookup(name)
        signal.signal(signal.SIGPROF, hung)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.addaudithook(lambda event, args: watch(seen, str(path), event, args))
        for number in numbers:
            path.unlink()
            path.write_bytes(damaged(kind, good, random.Random(f"{seed} {kind} {number}")))
            seen.clear()
            result = outcome(path, right)
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(number, "execution" if seen else result, more, sep="\t", flush=True)
            for event in seen:
                print(number, event, file=sys.stderr)
    return 0


def outcome(path: Path, right: dict[str, Any]) -> str:
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        found = {name: (tensor.dtype, tensor.shape, raw(tensor)) for name, tensor in read_file(path).tensors.items()}
        return "identical" if found == right else "wrong"
    except MinisdError as error:
        return "refused" if error.code == BAD_FILE else "other exception"
    except TimeoutError:
        return "hang"
    except BaseException as error:
        print(f"{path}: {error!r}", file=sys.stderr)
        return "other exception"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def hung(*_: object) -> None:
    raise TimeoutError("too long")


def watch(seen: list[str], path: str, event: str, args: tuple[Any, ...]) -> None:
    """Note what is neither harmless nor the reading of the file itself."""
    if event not in HARMLESS or (event == "open" and not str(args[0]).startswith(path)):
        seen.append(f"{event} {args}"[:200])


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def scratch() -> str | None:
    """Memory, where there is a folder of it: the files are small and many."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


# --- files, whole and damaged ---


def original(kind: str) -> tuple[bytes, dict[str, Tensor]]:
    """A small file with the ways of a real one."""
    draw = torch.Generator().manual_seed(0)
    weights = {f"model.diffusion_model.input_blocks.{n}.0.weight": torch.randn(8, 4 + n, 3, 3, generator=draw)
               for n in range(4)}
    weights["first_stage_model.decoder.conv_in.bias"] = torch.randn(64, generator=draw).half()
    weights["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    if kind.startswith("safetensors"):
        return save(weights, {"format": "pt"}), weights
    saved = io.BytesIO()
    torch.save({"epoch": 3, "global_step": 470_000, "callbacks": {torch.nn.Linear: {"best": None}},
                "state_dict": weights, "optimizer_states": [{"state": {0: {"step": torch.ones(1)}}}]}, saved)
    return saved.getvalue(), weights


def damaged(kind: str, good: bytes, chance: random.Random) -> bytes:
    way = chance.choice(WAYS)
    if kind != "ckpt, its pickle":
        return way(good, chance)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, way(data, chance) if name.endswith("data.pkl") else data)
    return target.getvalue()


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[:chance.randrange(len(data))]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    begin, length = chance.randrange(len(data)), chance.choice((1, 4, 16, 512))
    return data[:begin] + bytes(len(data[begin:begin + length])) + data[begin + length:]


def doubled(data: bytes, chance: random.Random) -> bytes:
    begin, length = chance.randrange(len(data)), chance.choice((1, 4, 16, 512))
    return data[:begin + length] + data[begin:begin + length] + data[begin + length:]


def moved(data: bytes, chance: random.Random) -> bytes:
    """A run written over another place."""
    begin, to, length = chance.randrange(len(data)), chance.randrange(len(data)), chance.choice((1, 4, 16, 512))
    run = data[begin:begin + length][:len(data) - to]
    return data[:to] + run + data[to + len(run):]


def appended(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 22, 4096, 70_000)))


WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, flipped, cut, zeroed, doubled, moved, appended)


if __name__ == "__main__":
    sys.exit(main())
