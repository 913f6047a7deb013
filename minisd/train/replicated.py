"""What is trained as one process holds it: whole. Several ranks then hold the same, and sum their gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minisd.train import gradients
from minisd.train.ranks import ALONE, Ranks


class Replicated:
    """Every rank has every parameter that learns. What `sharded.Sharded` does otherwise is a method here.

    All ranks call `collect`, `norm`, `shares`, `whole` and `showing` together, and in one order.
    """

    def __init__(self, module: nn.Module, ranks: Ranks = ALONE):
        self.module, self.ranks = module, ranks
        self.params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in self.params.items()}

    def note(self) -> str:
        """Who holds what, for the log."""
        return "one process holds everything, there is nothing to shard"

    def seed(self, seed: int) -> int:
        """What the rounding of this rank's bfloat16 numbers is drawn with: alike where they are the same numbers."""
        return seed

    def collect(self) -> None:
        """After the last pass of an update: gradients become those of all ranks' passes together."""
        self.ranks.add(p.grad for p in self.params.values() if p.grad is not None)

    def norm(self) -> Tensor:
        """Of the collected gradient, in float32: a scalar."""
        return gradients.norm(self.params.values())

    def shares(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Each term's share in the gradient, see `gradients.shares`: of this rank's pass."""
        return gradients.shares(losses, self.params.values())

    def whole(self, name: str, held: Tensor) -> Tensor:
        """All of a tensor like the named parameter, of which each rank holds its part: on the first rank."""
        return held

    def part(self, name: str, file: Any, key: str) -> Tensor:
        """This rank's part of a tensor like the named parameter, as an open safetensors file has it under a key."""
        found: Tensor = file.get_tensor(key)
        return found.reshape(self.shapes[name])

    @contextmanager
    def showing(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The module with other weights in place, to look at by the first rank alone; its own come back afterwards."""
        if not self.ranks.first:
            yield
            return
        raw = {name: p.detach().clone() for name, p in self.params.items()}
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(weights[name])
            try:
                yield
            finally:
                for name, p in self.params.items():
                    p.copy_(raw[name])
