"""What the gradient of a step tells: which share each loss term has in it, and whether it is out of proportion."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

YOUNG, LONG = 20, 100                             # steps until an average is trusted; steps that it spans


def shares(losses: Mapping[str, Tensor], params: Iterable[Tensor]) -> dict[str, float]:
    """Each term's part in the sum of the norms of all terms' gradients: `share/name`, together 1.

    It takes a backward pass for every term, and leaves the graph and the gradients as they are.
    """
    wanted = [p for p in params if p.requires_grad]
    norms = {}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        there = [grad for grad in grads if grad is not None]
        norms[name] = torch.stack(torch._foreach_norm(there)).norm().item() if there else 0.0
    return parts(norms)


def parts(norms: Mapping[str, float]) -> dict[str, float]:
    """Of terms' norms in their sum."""
    total = sum(norms.values()) or 1.0
    return {f"share/{name}": norm / total for name, norm in norms.items()}


def norm(params: Iterable[Tensor]) -> Tensor:
    """Of all gradients together, taken in float32: a scalar."""
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in params if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def clip(params: Sequence[Tensor], largest: float, norm: Tensor) -> None:
    """Scale the gradients down where their norm, as it was taken, is larger than this."""
    if norm + 1e-6 > largest:                     # otherwise they would be gone through to be multiplied by 1
        torch.nn.utils.clip_grads_with_norm_(params, largest, norm)


def is_spike(norm: float, usual: float, seen: int, factor: float) -> bool:
    """Whether a gradient's norm is more than `factor` times what it usually is; 0 = nothing is."""
    return bool(factor) and seen >= YOUNG and norm > factor * usual


def usual_norm(norm: float, usual: float, seen: int) -> float:
    """The geometric mean of the norms: plain at first, then over the last LONG steps or so."""
    if usual == 0:
        return norm
    weight = 1 / min(seen + 1, LONG)
    return math.exp((1 - weight) * math.log(max(usual, 1e-30)) + weight * math.log(max(norm, 1e-30)))
