"""One library in a process of its own, told by lines of JSON on its input what to do; it answers on its output.

Both libraries have such a process at the same time and are asked in turns: the machine's moods strike both alike,
while each keeps its own allocator settings, and the peak memory is its own.
"""

import argparse
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jobs import MANY
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
RSS_UNIT = 1 if sys.platform == "darwin" else 1024    # of ru_maxrss: bytes there, KiB elsewhere


class Worker:
    """The commands. Each answers with a dictionary."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.output = torch.empty(0)
        start = perf_counter()
        self.library = importlib.import_module(f"run_{options.library}")
        self.imported = perf_counter() - start

    def imports(self) -> dict[str, Any]:
        return {"seconds": self.imported}

    def load(self) -> dict[str, Any]:
        options = self.options
        start = perf_counter()
        self.model = self.library.Contestant(options.folder, options.dtype, options.side, options.channels_last)
        seconds = perf_counter() - start
        return {"seconds": seconds, "parameters": self.model.parameters()}

    def run(self) -> dict[str, Any]:
        job = {"text": self.model.text, "unet": self.model.unet, "vae": self.model.vae,
               "picture": self.model.picture, "long": partial(self.model.picture, MANY)}[self.options.job]
        with torch.inference_mode():
            start = perf_counter()
            self.output = job()
            seconds = perf_counter() - start
        return {"seconds": seconds}

    def save(self, path: str) -> dict[str, Any]:
        torch.save(self.output.float(), path)
        return {}

    def compare(self, path: str) -> dict[str, Any]:
        theirs = torch.load(path, weights_only=True)
        return {"difference": difference(self.output.float(), theirs)}


def difference(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference, relative to the standard deviation of the second."""
    if a.shape != b.shape:
        raise ValueError(f"outputs of {list(a.shape)} and {list(b.shape)}")
    return ((a - b).square().mean().sqrt() / b.std()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("minisd", "diffusers"))
    parser.add_argument("folder")
    parser.add_argument("job", choices=("import", "load", "text", "unet", "vae", "picture", "long"))
    parser.add_argument("dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("side", type=int, help="of the latents")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    serve(lambda: Worker(options), ("imports", "load", "run", "save", "compare"))


def serve(make: Callable[[], Any], commands: Sequence[str]) -> None:
    """Answers every line of the input, which names a method of what is made and its arguments; with the peak memory."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                     # whatever the libraries print is no answer
    worker = make()
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command not in commands:
            raise ValueError(f"{command!r} is none of {', '.join(commands)}")
        answer = getattr(worker, command)(*arguments)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        print(json.dumps({**answer, "peak": peak}), file=answers)


if __name__ == "__main__":
    main()
