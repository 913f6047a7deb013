"""Attention that learns in chunks beside PyTorch's, and beside float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisd.fast import attention, backward
from minisd.fast.backward import LearningAttention
from minisd.fast.onednn import computes
from minisd.layers import Attention
from minisd.train.recompute import again

pytestmark = pytest.mark.skipif(not computes(torch.float32), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one shorter."""
    monkeypatch.setattr(backward, "LARGE", 640)
    for name, value in {"CHUNK": 640, "ROWS": 3, "SEEN": 20}.items():
        monkeypatch.setattr(attention, name, value)


def made(kind: type[Attention], weights: torch.dtype) -> Attention:
    """Scores that are not all alike."""
    torch.manual_seed(0)
    block = Attention(32, 24, 4)
    with torch.no_grad():
        block.q.weight.mul_(6)
        for p in block.parameters():              # such as bfloat16 has
            p.copy_(p.bfloat16())
    block.to(weights).__class__ = kind
    return block


def taught(block: Attention, dtype: torch.dtype, n: int, m: int, forward: nn.Module | None = None) -> list[Tensor]:
    """Output, and gradients of inputs and parameters, in autocast where the weights are wider."""
    gen = torch.Generator().manual_seed(1)
    x, context, grad = (torch.randn(2, rows, dim, generator=gen).bfloat16().to(dtype)
                        for rows, dim in ((n, 32), (m, 24), (n, 32)))
    lowered = dtype != block.out.weight.dtype
    with torch.autocast("cpu", torch.bfloat16, lowered), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        y = (forward or block)(x.requires_grad_(), context.requires_grad_())
    found = torch.autograd.grad(y, [x, context, *block.parameters()], grad)
    return [y.detach(), *found]


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("safe", [attention.SAFE, -1e9], ids=["about the largest", "the largest"])  # is subtracted
@pytest.mark.parametrize(("n", "m"), [(64, 64), (100, 77), (9, 300)])
@pytest.mark.parametrize(("weights", "dtype", "tolerance"), [
    (torch.float32, torch.float32, 1e-5), (torch.bfloat16, torch.bfloat16, 3e-2),
    (torch.float32, torch.bfloat16, 3e-2)], ids=str)
def test_gradients(weights: torch.dtype, dtype: torch.dtype, tolerance: float, n: int, m: int, safe: float,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    if not computes(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
    monkeypatch.setattr(attention, "SAFE", safe)
    exact = taught(made(Attention, torch.float64), torch.float64, n, m)
    usual, found = (taught(made(kind, weights), dtype, n, m) for kind in (Attention, LearningAttention))
    assert [one.dtype for one in found] == [one.dtype for one in usual]
    for mine, theirs, right in zip(found, usual, exact, strict=True):
        assert off(mine, right) < tolerance and off(mine, right) < 2 * off(theirs, right) + 1e-6


def test_to_the_same_bits_again_and_recomputed() -> None:
    block = made(LearningAttention, torch.float32)
    first = taught(block, torch.bfloat16, 64, 64)
    for forward in (None, lambda *inputs: again(block, *inputs)):
        assert all(map(torch.equal, first, taught(block, torch.bfloat16, 64, 64, forward)))


def test_scores_beyond_all_powers() -> None:
    q, k, v = (100 * torch.randn(1, 20, 4) for _ in range(3))
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    y = backward.Attended.apply(*inputs, 1)
    y.sum().backward()
    exact = torch.softmax(q.double() @ k.double().transpose(1, 2) / 2, dim=2) @ v.double()
    assert (y - exact).abs().max() < 0.2 and all(x.grad.isfinite().all() for x in inputs)


def test_what_it_leaves_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward.Attended, "apply", None)          # would fail if it were called
    block = made(LearningAttention, torch.float32)
    x, context = torch.randn(2, 64, 32), torch.randn(2, 64, 24)
    block(x, context[:, :9])                      # few scores
    block(x, context, causal=True)
    with torch.no_grad():
        block(x, context)
    block.double()(x.double(), context.double())
    with pytest.raises(TypeError):
        block.float()(x, context)
