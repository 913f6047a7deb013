"""Workers asked in turns, and what their answers come to. Without torch or numpy: a parent's memory counts too."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1",
         "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
OURS, THEIRS, TUNED = "minisd", "diffusers", "diffusers tuned"
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}           # which minisd asks of the allocator itself


@dataclass(frozen=True)
class Row:
    """One thing that is measured. A fresh row takes a new process for every repeat."""

    name: str
    job: str
    dtype: str = "float32"
    pairs: int = 1                                    # measured pairs per repeat: short jobs need more
    fresh: bool = False
    warm: bool = True                                 # whether each library runs once unmeasured
    tuned: bool = False                               # whether diffusers is also tried with our layout and allocator
    long: bool = False                                # whether it is only measured when it is asked for
    allowed: float = 0.0                              # difference of the outputs, relative to their deviation


@dataclass
class Result:
    """Seconds of every repeat and peak memory in bytes, by contestant."""

    row: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    difference: float = 0.0
    allowed: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether all have been measured as often, for one at a time is a row by halves."""
        return len({len(each) for each in self.seconds.values()}) == 1 and {OURS, THEIRS} <= set(self.seconds)

    @property
    def same(self) -> bool:
        return self.difference <= self.allowed        # False for NaN

    def add(self, name: str, seconds: float, peak: int) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        self.peak[name] = max(peak, self.peak.get(name, 0))

    def time(self, name: str) -> float:
        return median(self.seconds[name])

    def speed(self, name: str = THEIRS) -> float:
        """How many times as long as we they take: the median over pairs measured one after the other."""
        return median(b / a for a, b in zip(self.seconds[OURS], self.seconds[name], strict=True))

    def memory(self, name: str = THEIRS) -> float:
        """How many times as much memory as we they take."""
        return self.peak[name] / self.peak[OURS]


@dataclass(frozen=True)
class Bench:
    """Where the weights are, and how much is measured."""

    weights: Path
    side: int                                         # of the latents
    repeats: int

    def measure(self, row: Row) -> Result:
        result = Result(row.name, allowed=row.allowed)
        if row.fresh:
            self._fresh(row, result)
        else:
            self._kept(row, result)
        return result

    def _fresh(self, row: Row, result: Result) -> None:
        """A new process each time: what is imported or loaded once is never as slow again."""
        found = {}
        for n in range(self.repeats * row.pairs):
            for name in in_turns([OURS, THEIRS], n):
                with self._worker(name, row) as ask:
                    answer = ask("imports") if row.job == "import" else ask("load")
                result.add(name, answer["seconds"], answer["peak"])
                found[name] = answer.get("parameters", 0)
        if found[OURS] != found[THEIRS]:              # the other rows compare what the weights make
            result.difference = float("inf")

    def _kept(self, row: Row, result: Result) -> None:
        """One process each, which stays; the first outputs are compared."""
        names = contestants(row)
        with ExitStack() as stack:
            ask = {name: stack.enter_context(self._worker(name, row)) for name in names}
            for name in names:
                ask[name]("load")
                if row.warm:
                    ask[name]("run")
            for n in range(self.repeats * row.pairs):
                for name in in_turns(names, n):
                    answer = ask[name]("run")
                    result.add(name, answer["seconds"], answer["peak"])
            output = str(self.weights / "output.pt")
            ask[THEIRS]("save", output)
            result.difference = ask[OURS]("compare", output)["difference"]

    def once(self, row: Row, result: Result) -> None:
        """Whoever was measured least, once, in a process that has the machine to itself.

        Its output stays beside the weights and is compared with ours, or ours with theirs, if that is there.
        """
        names = contestants(row)
        names = in_turns(names, sum(map(len, result.seconds.values())) // len(names))
        name = min(names, key=lambda name: len(result.seconds.get(name, [])))
        other = THEIRS if name == OURS else OURS
        output = {name: self.weights / f"{row.name} {name}.pt" for name in names}
        with self._worker(name, row) as ask:
            ask("load")
            if row.warm:
                ask("run")
            answer = ask("run")
            result.add(name, answer["seconds"], answer["peak"])
            ask("save", str(output[name]))
            if other in result.seconds and output[other].exists():
                result.difference = ask("compare", str(output[other]))["difference"]

    @contextmanager
    def _worker(self, name: str, row: Row) -> Iterator[Any]:
        """A process of one contestant, as a function that asks it."""
        library = name.split()[0]
        command = [sys.executable, str(HERE / "worker.py"), library, str(self.weights / library), row.job, row.dtype,
                   str(self.side), *(["--channels-last"] if name == TUNED else [])]
        with process(command, f"{row.name}: {name}", LARGE_PAGES if name == TUNED else {}) as ask:
            yield ask


@contextmanager
def process(command: list[str], who: str, environment: Mapping[str, str]) -> Iterator[Any]:
    """A process that answers lines of JSON by lines of JSON (`worker.serve`), as a function that asks it."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=os.environ | QUIET | environment)
    assert child.stdin is not None and child.stdout is not None

    def ask(*question: Any) -> dict[str, Any]:
        print(json.dumps(question), file=child.stdin, flush=True)
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"{who} died, exit code {child.wait()}; see its message above")
        return json.loads(line)

    try:
        yield ask
    finally:
        child.stdin.close()
        child.terminate()
        child.wait()


def contestants(row: Row) -> list[str]:
    return [OURS, THEIRS, TUNED] if row.tuned else [OURS, THEIRS]


def in_turns(names: list[str], n: int) -> list[str]:
    """Who comes first changes from repeat to repeat."""
    return names[n % len(names):] + names[:n % len(names)]
