"""What is trained, spread over the ranks by PyTorch's FSDP2 (after ZeRO, arXiv 1910.02054, stage 3).

Of every parameter, its gradient, its moments and its average a rank holds some rows only. A block's weights are put
together where it computes, and its gradients are summed over the ranks and split again as soon as they are there: in
every pass, since to wait for an update's last one would mean to hold the whole gradient meanwhile.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from minisd.layers import MLP
from minisd.train import gradients
from minisd.train.ranks import Ranks, told
from minisd.train.recompute import LIGHTER
from minisd.train.replicated import Replicated

# What is put together at a time: blocks, and what lies between them. A UNet's MLPs serve every block, so they cannot be
# left to the whole, whose weights come back only if its very output has a gradient: features alone may have one.
UNITS = {*LIGHTER, *LIGHTER.values(), nn.Conv2d, MLP}
HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # of a module: here FSDP2 puts weights together and frees them again
WEIGHTS = "_parameters"                           # of a module, by name
APART = 1 << 48                                   # seeds of two ranks


class Sharded(Replicated):
    """Every rank has its rows of each parameter that learns: `params` are plain tensors that share their memory with
    those of the module, so that optimiser and average know nothing of all this."""

    def __init__(self, module: nn.Module, ranks: Ranks):
        super().__init__(module, ranks)
        self.strides = {name: p.stride() for name, p in self.params.items()}
        self.mesh = init_device_mesh(next(iter(self.params.values())).device.type, (ranks.count,))
        for p in self.params.values():
            p.data = p.data.contiguous()          # rows of a channels_last weight would be refused
        self.kinds = {unit: type(unit) for unit in (*units(module), module)}
        frozen = {p for p in module.parameters() if not p.requires_grad}
        for unit in self.kinds:
            sharded = fully_shard(unit, mesh=self.mesh, ignored_params=frozen)
            sharded.set_gradient_divide_factor(1.0)             # losses are divided by the passes already
            sharded.set_force_sum_reduction_for_comms(True)     # otherwise a kind of sum that gloo has not
        self.rows = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.params = {name: nn.Parameter(local(p)) for name, p in self.rows.items()}

    def note(self) -> str:
        numbers = sum(shape.numel() for shape in self.shapes.values())
        mine = sum(p.numel() for p in self.params.values())
        return f"sharded over {self.ranks.count} ranks: this one holds {mine:,} of {numbers:,} parameters"

    def seed(self, seed: int) -> int:
        """Each rank has other numbers, and draws for them by itself."""
        return (seed + self.ranks.rank * APART) % (1 << 64)

    def collect(self) -> None:
        """They are summed already; here they come to the parameters that are optimised."""
        for name, p in self.params.items():
            p.grad, self.rows[name].grad = local(self.rows[name].grad), None

    def norm(self) -> Tensor:
        mine = gradients.norm(self.params.values())
        squares = self.ranks.total({"squares": mine.item() ** 2})["squares"]
        return torch.tensor(squares ** 0.5, dtype=torch.float32, device=mine.device)

    def shares(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the gradient of all ranks' passes: it is split already when it can be measured."""
        before = {name: p.grad for name, p in self.rows.items()}
        norms = {}
        for term, loss in losses.items():
            for p in self.rows.values():
                p.grad = None
            loss.backward(retain_graph=True)
            self.collect()
            norms[term] = self.norm().item()
        for name, p in self.rows.items():
            p.grad, self.params[name].grad = before[name], None
        return gradients.parts(norms)

    def whole(self, name: str, held: Tensor) -> Tensor:
        count, shape = self.ranks.count, self.shapes[name]
        most = -(-shape[0] // count)              # rows of the first rank: others may have fewer, and send as many
        sent = held.new_zeros(most, *shape[1:])
        sent[:len(held)] = held
        found = held.new_empty(count * most, *shape[1:]) if self.ranks.first else sent
        with told():
            dist.gather(sent, list(found.split(most)) if self.ranks.first else None)
        return found[:shape[0]]

    def part(self, name: str, file: Any, key: str) -> Tensor:
        count, rows = self.shapes[name][0], len(self.params[name])
        first = min(self.ranks.rank * -(-count // self.ranks.count), count)     # as `torch.chunk` splits
        found: Tensor = file.get_slice(key)[first:first + rows] if rows else torch.empty(0)
        return found.reshape(self.params[name].shape)

    @contextmanager
    def showing(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The module as a plain one, that draws without asking other ranks; it takes the weights whole, on the first.

        Left to its hooks it would put them together block by block, at every step of every picture and by all ranks,
        and what lays out a module to draw with would leave them elsewhere than where FSDP2 keeps them.
        """
        full = {}
        for name, weight in weights.items():
            found = self.whole(name, weight)
            if self.ranks.first:
                full[name] = nn.Parameter(laid(found, self.strides[name]))
        with plain(self.module, self.kinds, full) if self.ranks.first else nullcontext():
            yield


@contextmanager
def plain(module: nn.Module, kinds: Mapping[nn.Module, type], weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """A module of the kinds that it had before it was sharded, with these weights and no hooks; then as it was."""
    modules = dict(module.named_modules())
    before = {one: (type(one), {key: one.__dict__[key] for key in (*HOOKS, WEIGHTS)}) for one in modules.values()}
    for path, one in modules.items():
        one.__class__ = kinds.get(one, type(one))
        there = {key: weights.get(f"{path}.{key}".lstrip("."), p) for key, p in one.__dict__[WEIGHTS].items()}
        one.__dict__.update({key: OrderedDict() for key in HOOKS} | {WEIGHTS: there})
    try:
        yield
    finally:
        for one, (kind, kept) in before.items():
            one.__class__ = kind
            one.__dict__.update(kept)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """What is put together at a time, apart from the rest of the module: none lies within another."""
    for child in module.children():
        if type(child) in UNITS:
            yield child
        else:
            yield from units(child)


def local(rows: Any) -> Any:
    """What of a DTensor lies here, in the same memory; of none, none."""
    return None if rows is None else rows.detach().to_local()


def laid(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The same numbers in another order in memory."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
