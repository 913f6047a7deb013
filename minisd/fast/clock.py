"""Where the time goes: seconds of each network, and within it of each kind of module.

What a module does itself is its own; what the modules in it do is theirs. So `Attention` stands for the products of
queries, keys and values alone, and `ResBlock` for its activations and sums.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from minisd.fast.passes import PLAIN

STATUS = Path("/proc/self/status")
BEFORE, BESIDE = "before the first network", "between and after them"
SMALL = 0.01                                      # share of its network: kinds below it are shown together


class Spent(NamedTuple):
    """A row of the table; without a kind, it is of the whole network."""

    network: str
    kind: str
    calls: int
    seconds: float


class Clock:
    """Looks at every module that is called while it is entered."""

    def __init__(self, start: float | None = None):
        self.start = self.last = perf_counter() if start is None else start
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.calls: Counter[tuple[str, str]] = Counter()
        self.within: list[str] = []               # the modules that are being computed, the network first

    def __enter__(self) -> "Clock":
        self.hooks = [register_module_forward_pre_hook(self._enter),
                      register_module_forward_hook(self._leave, always_call=True)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._pass()
        for hook in self.hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():         # what is one graph is timed as one
            return
        self._pass()
        self.within.append(PLAIN.get(type(module), type(module)).__name__)
        self.calls[self._here()] += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._pass()
        self.within.pop()

    def _pass(self) -> None:
        """What has gone by since the last look belongs to the module that is being computed."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()              # or the time would be that of giving orders
        now = perf_counter()
        self.seconds[self._here()] += now - self.last
        self.last = now

    def _here(self) -> tuple[str, str]:
        if self.within:
            return self.within[0], self.within[-1]
        return (BESIDE if self.calls else BEFORE), ""

    def rows(self) -> Iterator[Spent]:
        """Networks in the order in which they were first called, kinds by their seconds."""
        for network in dict.fromkeys(network for network, _ in self.seconds):
            kinds = {kind: seconds for (own, kind), seconds in self.seconds.items() if own == network}
            total = sum(kinds.values())
            yield Spent(network, "", self.calls[network, network], total)
            shown = sorted((kind for kind in kinds if kind and kinds[kind] >= SMALL * total), key=lambda k: -kinds[k])
            if shown:
                yield from (Spent(network, kind, self.calls[network, kind], kinds[kind]) for kind in shown)
                yield Spent(network, "others", 0, total - sum(kinds[kind] for kind in shown))

    def table(self) -> str:
        """For people."""
        whole = max(self.last - self.start, 1e-9)
        lines = [f"{'where the time went':32}{'calls':>8}{'seconds':>10}{'share':>8}"]
        for row in self.rows():
            name = f"  {row.kind}" if row.kind else row.network
            lines.append(f"{name:32}{row.calls or '':>8}{row.seconds:>10.2f}{row.seconds / whole:>8.0%}")
        peak = peak_memory()
        memory = f"; peak memory {peak / 2 ** 30:.2f} GiB" if peak is not None else ""
        return "\n".join([*lines, f"{whole:.2f} s in all{memory}"])


def peak_memory() -> int | None:
    """The most bytes that this process has held, as the Linux kernel counts; None elsewhere."""
    if not STATUS.exists():
        return None
    line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")), None)
    return int(line.split()[1]) << 10 if line else None
