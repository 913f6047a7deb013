"""Which modules of a network compute faster while it is trained on a CPU, and the way back.

As with `minisd.fast.passes` a module keeps its place, its name and its parameters; only its class changes. Gradients
keep the precision of their dtype, but not their bits: so the layers know themselves where they win, and leave tensors
of other sizes, other dtypes, and all that is computed without gradients, to PyTorch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn

from minisd.fast.attention import worthwhile
from minisd.fast.backward import LearningAttention
from minisd.fast.columns import ColumnConv2d, suited
from minisd.layers import Attention


@contextmanager
def learning(network: nn.Module) -> Iterator[None]:
    """While this is entered, a network that learns computes faster."""
    before = {module: type(module) for module in network.modules() if faster(module) is not type(module)}
    try:
        for module in before:
            module.__class__ = faster(module)
        yield
    finally:
        for module, kind in before.items():
            module.__class__ = kind


def faster(module: nn.Module) -> type[nn.Module]:
    """The class that a module has meanwhile."""
    kind = type(module)
    if kind is nn.Conv2d and suited(cast(nn.Conv2d, module)):
        return ColumnConv2d
    if kind is Attention and worthwhile():
        return LearningAttention
    return kind
