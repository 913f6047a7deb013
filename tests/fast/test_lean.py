"""Lean blocks: the bits and the gradients of the plain ones."""

import pytest
import torch
from torch import Tensor, nn

from minisd.fast import lean
from minisd.fast.lean import LeanGEGLU, LeanResBlock, LeanTransformerLayer
from minisd.layers import GEGLU, ResBlock, TransformerLayer

BLOCKS = [
    (ResBlock(32, 32, 4, 1e-5, 16), LeanResBlock, [(2, 32, 6, 5), (2, 16)]),
    (ResBlock(32, 64, 4, 1e-6), LeanResBlock, [(2, 32, 6, 5)]),
    (TransformerLayer(32, 24, 4), LeanTransformerLayer, [(2, 30, 32), (2, 7, 24)]),
    (GEGLU(32), LeanGEGLU, [(2, 30, 32)]),
]


def run(block: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The output, and the gradients of everything."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = block(*leaves)
    return y.detach(), *torch.autograd.grad(y.square().sum(), [*leaves, *block.parameters()])


@pytest.mark.parametrize(("block", "kind", "shapes"), BLOCKS, ids=lambda value: "")
def test_lean_blocks(block: nn.Module, kind: type[nn.Module], shapes: list[tuple[int, ...]]) -> None:
    inputs = [torch.randn(shape) for shape in shapes]
    kept = [x.clone() for x in inputs]
    plain = type(block)
    wanted = run(block, inputs)
    block.__class__ = kind
    found = run(block, inputs)
    block.__class__ = plain
    assert torch.equal(found[0], wanted[0])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_tokens_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = GEGLU(32), torch.randn(3, 11, 32)
    wanted = block(x)
    monkeypatch.setattr(lean, "ROWS", 7)          # the last piece is shorter
    block.__class__ = LeanGEGLU
    with torch.no_grad():
        torch.testing.assert_close(block(x), wanted)
