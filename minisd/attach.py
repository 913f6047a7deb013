"""Adapters on and off a model: LoRA and its kin, of which the model's own file knows nothing.

`attach` swaps the modules it is told of for ones that hold the same parameters and named side paths (see `lora`);
`detach` swaps them back; `merge` puts the weights' sums in their place, and undoes it to the bit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from minisd.errors import USAGE, MinisdError
from minisd.fast import passes
from minisd.lora import HOSTS, PLAIN, Host, LowRank, Side, hosted, plain

SHOWN = 10                                        # paths that an error lists


@dataclass(frozen=True)
class LoRASpec:
    """An adapter as data. `targets` are patterns of module paths, such as `*_attn.*` or `up.?.res.*.conv?`."""

    name: str
    rank: int = 4
    alpha: float | None = None                    # the side path is scaled by alpha / rank; None = rank
    targets: tuple[str, ...] = ("*_attn.*",)

    def __post_init__(self) -> None:
        if not self.name or "." in self.name:
            raise ValueError(f"an adapter called {self.name!r}: a name is not empty and has no dot")
        if self.rank < 1:
            raise ValueError(f"rank {self.rank}: at least 1")


# ---------------------------------------------------------------- on and off
def targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Paths of the Linears and convolutions that match any of the patterns; each pattern must find one."""
    paths = [path for path, module in model.named_modules() if passes.kind_of(module) in HOSTS | PLAIN]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(path, pattern) for path in paths)]
    if idle:
        raise MinisdError(f"no module matches {', '.join(idle)}", why=f"there are {', '.join(paths[:SHOWN])}, ...",
                          remedy="give patterns of module paths, such as *_attn.*", code=USAGE)
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


@torch.inference_mode(False)                      # inside it, too, they are weights like any others
def attach(model: nn.Module, spec: LoRASpec, generator: torch.Generator) -> list[nn.Parameter]:
    """A new adapter, which adds nothing until it is trained: `down` is drawn, `up` is 0. Returns its parameters."""
    passes.plain(model)
    sides = {path: begun(model.get_submodule(path), spec, generator) for path in targets(model, spec.targets)}
    put(model, spec.name, sides)
    return parameters(model, spec.name)


def begun(module: nn.Module, spec: LoRASpec, generator: torch.Generator) -> LowRank:
    """The side path of a new adapter beside one module, in float32: it is to be trained."""
    weight = cast(Tensor, module.weight)
    bound = 1 / math.sqrt(weight[0].numel())      # as the weights of a fresh Linear or convolution are drawn
    down = torch.empty(spec.rank, *weight.shape[1:]).uniform_(-bound, bound, generator=generator)
    up = torch.zeros(weight.shape[0], spec.rank, *[1] * (weight.dim() - 2))
    alpha = spec.rank if spec.alpha is None else spec.alpha
    return LowRank(down.to(weight.device), up.to(weight.device), alpha)


@torch.inference_mode(False)
def put(model: nn.Module, name: str, sides: Mapping[str, Side]) -> None:
    """Lay an adapter's side paths beside the modules of these paths."""
    if name in adapters(model):
        raise MinisdError(f"an adapter called {name!r} is attached already", remedy="detach it, or give another name",
                          code=USAGE)
    for path, side in sides.items():
        host = hosted(passes.plain(model.get_submodule(path)))       # should the model have drawn already
        model.set_submodule(path, host)
        host.lora[name] = side.to(host.weight.device)  # its strength too, which is made on the CPU


@torch.inference_mode(False)
def detach(model: nn.Module, name: str) -> dict[str, Side]:
    """Take an adapter away; a module that no other is beside is itself again. Returns the side paths."""
    taken: dict[str, Side] = {}
    for path, host in list(hosts(model)):
        if name in host.lora:
            taken[path] = cast(Side, host.lora.pop(name))
            if not host.lora:
                model.set_submodule(path, plain(passes.plain(host)))
    if not taken:
        raise absent(model, name)
    return taken


def reweigh(model: nn.Module, name: str, strength: float | Mapping[str, float]) -> None:
    """Set how much of an adapter is added: 0 is off, 1 as trained. A mapping gives strengths by patterns of paths.

    Of several patterns that match a module the last one counts; where none does, nothing is added.
    """
    by_pattern = strength if isinstance(strength, Mapping) else {"*": strength}
    there = sides(model, name)
    for path, side in there.items():
        matching = [value for pattern, value in by_pattern.items() if fnmatchcase(path, pattern)]
        side.strength.fill_(matching[-1] if matching else 0.0)


# ---------------------------------------------------------------- merged
@dataclass(frozen=True)
class Merged:
    """What stood in a model before its adapters were merged."""

    model: nn.Module
    hosts: Mapping[str, Host]

    def undo(self) -> None:
        """The very modules and parameters as before, adapters beside them."""
        for path, host in self.hosts.items():
            self.model.set_submodule(path, host)


@torch.inference_mode(False)
@torch.no_grad()
def merge(model: nn.Module) -> Merged:
    """Put plain modules with the sum of weight and side paths in place: no cost at all in use.

    Multiplied and summed in float32, and rounded once to the weight's dtype.
    """
    before = Merged(model, dict(hosts(model)))
    for path, host in before.hosts.items():
        module = plain(passes.plain(host))
        total = host.weight.float()
        for side in host.lora.values():
            exact = deepcopy(cast(Side, side)).float()
            total = total + exact.strength * exact.delta()
        module.weight = nn.Parameter(total.to(host.weight.dtype), requires_grad=host.weight.requires_grad)
        model.set_submodule(path, module)
    return before


# ---------------------------------------------------------------- what is there
def hosts(model: nn.Module) -> Iterator[tuple[str, Host]]:
    """Modules with side paths, by path."""
    return ((path, cast(Host, module)) for path, module in model.named_modules()
            if passes.kind_of(module) in PLAIN)


def adapters(model: nn.Module) -> list[str]:
    """Names of the attached adapters, in the order of their attaching."""
    return list(dict.fromkeys(name for _, host in hosts(model) for name in host.lora))


def sides(model: nn.Module, name: str) -> dict[str, Side]:
    """An adapter's side paths by the paths of the modules they are beside."""
    found = {path: cast(Side, host.lora[name]) for path, host in hosts(model) if name in host.lora}
    if not found:
        raise absent(model, name)
    return found


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """All that is trained of an adapter."""
    return [parameter for side in sides(model, name).values() for parameter in side.parameters()]


def absent(model: nn.Module, name: str) -> MinisdError:
    return MinisdError(f"no adapter is called {name!r}", why=f"attached: {', '.join(adapters(model)) or 'none'}",
                       code=USAGE)
