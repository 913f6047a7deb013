"""Attention in chunks beside PyTorch's, and beside float64."""

import pytest
import torch

from minisd.fast import attention
from minisd.fast.attention import AMX, ChunkedAttention, worthwhile
from minisd.fast.onednn import serves
from minisd.layers import Attention

pytestmark = pytest.mark.skipif(not serves(torch.zeros(1)), reason="PyTorch was built without oneDNN")


def made(dtype: torch.dtype, n: int, m: int) -> tuple[Attention, torch.Tensor, torch.Tensor]:
    """Scores that are not all alike."""
    block = Attention(32, 24, 4).requires_grad_(False)
    block.q.weight.mul_(6)
    return block.to(dtype), torch.randn(2, n, 32).to(dtype), torch.randn(2, m, 24).to(dtype)


@pytest.mark.parametrize("safe", [attention.SAFE, -1e9], ids=["about the largest", "the largest"])  # is subtracted
@pytest.mark.parametrize(("n", "m"), [(64, 64), (100, 77), (9, 300)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_chunks(dtype: torch.dtype, tolerance: float, n: int, m: int, safe: float,
                monkeypatch: pytest.MonkeyPatch) -> None:
    if not serves(torch.zeros(1, dtype=dtype)):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
    monkeypatch.setattr(attention, "LARGE", 640)
    monkeypatch.setattr(attention, "CHUNK", 640)  # several of them, the last one shorter
    monkeypatch.setattr(attention, "ROWS", 3)
    monkeypatch.setattr(attention, "SEEN", 20)
    monkeypatch.setattr(attention, "SAFE", safe)
    block, x, context = made(dtype, n, m)
    with torch.inference_mode():
        exact = block.double()(x.double(), context.double())
        whole = block.to(dtype)(x, context)
        block.__class__ = ChunkedAttention
        found = block(x, context)
    error, usual = ((y.double() - exact).square().mean().sqrt() / exact.std() for y in (found, whole))
    assert error < tolerance and error < 2 * usual + 1e-6


def test_scores_beyond_all_powers() -> None:
    q, k, v = 100 * torch.randn(20, 4), 100 * torch.randn(30, 4), torch.randn(30, 4)
    y = torch.empty_like(q)
    attention.attend(q, k, v, y)
    exact = torch.softmax(q.double() @ k.double().t() / 2, dim=1) @ v.double()
    assert y.isfinite().all() and (y - exact).abs().max() < 2e-3


def test_what_it_leaves_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", None)                 # would fail if it were called
    block, x, context = made(torch.float32, 64, 64)
    block.__class__ = ChunkedAttention
    with torch.inference_mode():
        block(x, context)                         # few scores
    monkeypatch.setattr(attention, "LARGE", 1)
    block(x, context)                             # with gradients
    with torch.inference_mode():
        block(x, context, causal=True)
        with pytest.raises(TypeError):
            block(x, context)


def test_processors_with_amx_have_a_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "cpu_flags", lambda: {AMX, "avx512f"})
    assert not worthwhile()
    monkeypatch.setattr(attention, "cpu_flags", lambda: {"avx2"})
    assert worthwhile()
