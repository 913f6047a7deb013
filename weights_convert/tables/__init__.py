"""Key tables as data: where the blocks of a model live, times what is inside a block of each kind.

`blocks(cfg)` of each part is the only arithmetic; the leaves are constants. Their product is the rows that lead from
our names to those of one dialect, and any dialect is reached from any other by way of ours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OURS, ORIGINAL, HF = 0, 1, 2  # columns: minisd, the authors' own code, Hugging Face's libraries
Names = tuple[str, str, str]  # one for each column


class Rule(NamedTuple):
    """How a dialect's tensors become ours, and the way back."""

    read: Callable[..., Sequence[Tensor]]
    write: Callable[..., Sequence[Tensor]]


SAME = Rule(lambda *tensors: tensors, lambda *tensors: tensors)
TRANSPOSED = Rule(lambda w: (w.T.contiguous(),), lambda w: (w.T.contiguous(),))
SQUEEZED = Rule(lambda w: (w.reshape(w.shape[:2]),), lambda w: (w[:, :, None, None],))  # a 1x1 convolution, our Linear
SPLIT = Rule(lambda w: w.chunk(3), lambda q, k, v: (torch.cat([q, k, v]),))             # q, k and v in one tensor


class Block(NamedTuple):
    """A place in the model: what kind of block stands there, and the path to it in each column."""

    kind: str
    paths: Names


class Leaf(NamedTuple):
    """A tensor inside a block: its name in each column, and the rule from the original's tensor to ours.

    Hugging Face lays tensors out as we do. Several names, with spaces between them, are several tensors that belong
    together; no name of ours is a tensor that is known and left behind.
    """

    names: Names
    rule: Rule = SAME


class Row(NamedTuple):
    """Tensors of ours, what they are called in a dialect, and the rule from its tensors to ours."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    rule: Rule


Leaves = Mapping[str, Sequence[Leaf]]  # what is inside a block of each kind


def product(blocks: Iterable[Block], leaves: Leaves, column: int) -> Iterator[Row]:
    """A row for each leaf of each block: from our names to those in this column."""
    for kind, paths in blocks:
        for names, rule in leaves[kind]:
            ours, theirs = inside(paths[OURS], names[OURS]), inside(paths[column], names[column])
            yield Row(ours, theirs, rule if column == ORIGINAL else SAME)


def inside(path: str, names: str) -> tuple[str, ...]:
    """Full names of what a cell names inside the block at a path; either may be empty."""
    return tuple(f"{path}.{name}".replace("..", ".").lstrip(".") for name in names.split())


def both(ours: str, original: str, hf: str, rule: Rule = SAME) -> list[Leaf]:
    """A module's weight, to which the rule applies, and its bias."""
    return [Leaf((f"{ours}.weight", f"{original}.weight", f"{hf}.weight"), rule),
            Leaf((f"{ours}.bias", f"{original}.bias", f"{hf}.bias"))]


def alike(*names: str) -> list[Leaf]:
    """Weights and biases of modules with one name in all columns; "" is the block itself."""
    return [leaf for name in names for leaf in both(name, name, name)]
