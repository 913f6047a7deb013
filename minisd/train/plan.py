"""The order of pictures of several sizes: together go those of one size, and still each sample number has its picture.

An epoch is a permutation of runs, each of `together` pictures of one bucket; a bucket's last run is filled from its
beginning. So the order depends on the seed and on `together`, never on processes or on what came before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from minisd.train.draws import Purpose, stream


@dataclass(frozen=True)
class Plan:
    """`groups` are the places of the rows of each bucket; none is empty."""

    seed: int
    groups: tuple[tuple[int, ...], ...]
    together: int

    def order(self, n: int) -> int:
        """Place of the row of sample n."""
        epoch, place = divmod(n, self.samples)
        return int(self.epoch(epoch)[place])

    def neighbours(self, place: int) -> Iterator[int]:
        """The places of a bucket, from this one on and round again."""
        group = self.groups[self.group_of[place]]
        first = group.index(place)
        yield from (*group[first:], *group[:first])

    @cached_property
    def samples(self) -> int:
        """Of an epoch."""
        return self.together * sum(-(-len(group) // self.together) for group in self.groups)

    @cached_property
    def group_of(self) -> dict[int, int]:
        return {place: number for number, group in enumerate(self.groups) for place in group}

    def epoch(self, number: int) -> np.ndarray:
        return arranged(self.seed, number, self.groups, self.together)


@lru_cache(maxsize=4)
def arranged(seed: int, epoch: int, groups: Sequence[tuple[int, ...]], together: int) -> np.ndarray:
    """The places of an epoch's samples, one after the other."""
    draws = stream(seed, epoch, Purpose.ORDER)
    runs = [np.resize(draws.permutation(group), -(-len(group) // together) * together).reshape(-1, together)
            for group in groups]
    return draws.permutation(np.concatenate(runs)).reshape(-1)
