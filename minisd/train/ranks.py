"""Several processes that train one model, each on its share of the passes (`torchrun --nproc-per-node 2 -m …`).

Gradients are added up after the last pass of an update, so a step is what one process makes of as many passes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from minisd.errors import DISTRIBUTED, MinisdError

PATIENCE = timedelta(hours=2)                     # the others wait while the first draws sample pictures
BUCKET = 1 << 24                                  # numbers that are sent together


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many; alone, everything is where it belongs already."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes: logs, pictures, checkpoints."""
        return self.rank == 0

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes the sum over the ranks, in place."""
        if self.count > 1:
            with told():
                for group in buckets(list(tensors)):
                    flat = torch.cat([tensor.reshape(-1) for tensor in group])
                    dist.all_reduce(flat)
                    torch._foreach_copy_(group, [part.view_as(tensor) for part, tensor in
                                                 zip(flat.split([t.numel() for t in group]), group, strict=True)])

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """The sum of each value over the ranks; all have the same names."""
        if self.count == 1:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
        with told():
            dist.all_reduce(numbers)
        return dict(zip(values, numbers.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.total({"flag": float(flag)})["flag"] > 0

    def from_first(self, word: str) -> str:
        """What the first rank says; the others wait for it."""
        if self.count == 1:
            return word
        said = [word]
        with told():
            dist.broadcast_object_list(said, src=0, device=device())
        return said[0]


ALONE = Ranks()


def device() -> torch.device:
    """Where the ranks exchange numbers."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in runs of about BUCKET numbers: few large messages, and little memory beside the gradients."""
    group: list[Tensor] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(one.numel() for one in group) >= BUCKET:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun has started, else this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def told(asking: bool = True) -> Iterator[None]:
    """A rank that is gone is an error of this one, too. Where ranks are not asked by name, but by what computes with
    sharded weights, an error is taken so only if it speaks of them."""
    try:
        yield
    except RuntimeError as fault:
        if not asking and not isinstance(fault, dist.DistError) and "gloo" not in str(fault):
            raise
        raise MinisdError("another rank is gone", "", str(fault).splitlines()[0][:200],
                          "look for its error above, and resume", DISTRIBUTED) from fault
