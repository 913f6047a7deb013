"""Comparing networks layer by layer, on random weights; a difference names the first layer that shows it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minisd.store import Blank
from weights_convert.tables import Block, Row


class Difference(NamedTuple):
    """Where two tensors differ most; `relative` to the largest value of the reference."""

    relative: float
    largest: float
    index: tuple[int, ...]
    ours: float
    theirs: float

    def __str__(self) -> str:
        return (f"largest difference {self.largest:.3g} ({self.relative:.3g} relative) at {list(self.index)}: "
                f"ours {self.ours:.9g}, reference {self.theirs:.9g}")


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Measured in double precision; a value that is not finite differs infinitely."""
    a, b = ours.double(), theirs.double()
    gap = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
    where = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    largest, scale = gap[where].item(), b.abs().max().item()
    relative = largest / scale if largest and scale else largest
    return Difference(relative, largest, where, a[where].item(), b[where].item())


def assert_close(site: str, ours: Tensor, theirs: Tensor, tolerance: float) -> float:
    """Fails with the site, the largest difference, its index and both values; returns the relative difference."""
    if theirs.shape != ours.shape and theirs.shape[:2] == ours.flatten(2).shape[:2]:
        theirs = theirs.reshape(ours.shape)  # diffusers keeps pixels in one dimension where we keep two
    assert ours.shape == theirs.shape, f"{site}: ours is {list(ours.shape)}, the reference's {list(theirs.shape)}"
    if torch.equal(ours, theirs):
        return 0.0
    found = difference(ours, theirs)
    assert found.relative <= tolerance, f"{site}: {found}; allowed {tolerance:g} relative"
    return found.relative


def assert_same_layers(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], pairs: Mapping[str, str],
                       tolerance: float) -> float:
    """Compares in the order in which our layers ran, so that the first to differ is the one that fails."""
    assert len(ours) > 1, "no layers were recorded"
    return max(assert_close(name, tensor, theirs[pairs[name]], tolerance) for name, tensor in ours.items())


def paired(rows: Iterable[Row], blocks: Iterable[Block], column: int) -> dict[str, str]:
    """Our modules and the reference's, by the key table: every module with a weight, and every block of them."""
    tensors = [names for row in rows if row.ours for names in zip(row.ours, row.theirs, strict=True)]
    modules = {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in tensors}
    return modules | {block.paths[0]: block.paths[column] for block in blocks if all(block.paths)}


@contextmanager
def recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules, in the order in which they run; of a module that runs twice, the first."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module, _inputs, output) -> None:
            outputs.setdefault(name, (output if isinstance(output, Tensor) else output[0]).detach().clone())
        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def on_meta(model, cfg) -> nn.Module:
    """The model without memory for its weights."""
    with Blank(), torch.device("meta"):
        return model(cfg)


def random_model(model, cfg, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """The model with random weights, norms and biases, in which a value of about 1 stays one.

    With a small `gain` the values between the layers are as small as the eps of the norms, so that a wrong eps shows.
    """
    made = on_meta(model, cfg).to_empty(device="cpu").requires_grad_(False).eval()
    noise = torch.Generator().manual_seed(seed)
    for module in made.modules():
        normal = isinstance(module, nn.GroupNorm | nn.LayerNorm)
        for name, p in module.named_parameters(recurse=False):
            p.normal_(generator=noise)
            if normal:
                p.mul_(0.2).add_(1.0 if name == "weight" else 0.0)
            else:
                fan_in = 1 if isinstance(module, nn.Embedding) or p.dim() < 2 else p[0].numel()
                p.mul_(gain * (0.2 if p.dim() < 2 else fan_in ** -0.5))
    return made


def with_eps(model: nn.Module, name: str, eps: float) -> nn.Module:
    """A copy of the model in which one norm has another eps."""
    changed = deepcopy(model)
    changed.get_submodule(name).eps = eps
    return changed


def norms(model: nn.Module) -> dict[str, float]:
    """The eps of every norm."""
    return {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)}
