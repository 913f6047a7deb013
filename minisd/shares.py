"""Work shared by processes that were started together, as torchrun starts them: who am I, and what is mine?

Each process works out the whole list and takes its own part of it, so they need not talk to each other.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from minisd.errors import DISTRIBUTED, MinisdError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One of `world` processes; `local` is its place among those of this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def name(self) -> str:
        """What goes before a message, so that one sees whose it is."""
        return "" if self.alone else f"rank {self.rank}: "

    def of(self, whole: Sequence[T]) -> Sequence[T]:
        """This process's part: dealt out like cards, so that all have about as much to do."""
        return whole[self.rank::self.world]


def share(env: Mapping[str, str] = os.environ) -> Share:
    """From RANK and WORLD_SIZE (torchrun, or set by hand) and LOCAL_RANK; alone where neither is there."""
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return Share()
    rank, world = number(env, "RANK"), number(env, "WORLD_SIZE")
    if rank >= world:
        raise MinisdError(f"RANK={rank} with WORLD_SIZE={world}", "the environment",
                          remedy="ranks count from 0 to WORLD_SIZE - 1", code=DISTRIBUTED)
    return Share(rank, world, number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank)


def number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise MinisdError(f"{name}={text[:30]!r} is not a number" if text else f"{name} is not set", "the environment",
                          remedy="set RANK and WORLD_SIZE together, as torchrun does, or neither", code=DISTRIBUTED)
    return int(text)
