"""Convolutions as products beside PyTorch's, and beside float64."""

import pytest
import torch
from torch import Tensor, nn

from minisd.fast import columns
from minisd.fast.columns import ColumnConv2d, suited
from minisd.fast.onednn import computes

pytestmark = pytest.mark.skipif(not computes(torch.bfloat16), reason="oneDNN does not compute in bfloat16 here")
WEIGHT = (24, 20, 3, 3)


def made(like: type[nn.Conv2d], weights: torch.dtype, **settings: object) -> nn.Conv2d:
    """The same weights every time."""
    torch.manual_seed(0)
    conv = nn.Conv2d(WEIGHT[1], WEIGHT[0], 3, **settings)  # type: ignore[arg-type]
    with torch.no_grad():                         # such as bfloat16 has
        for p in conv.parameters():
            p.copy_(p.bfloat16())
    conv.to(weights, memory_format=torch.channels_last)  # type: ignore[call-overload]
    conv.__class__ = like
    return conv


def taught(conv: nn.Conv2d, dtype: torch.dtype) -> list[Tensor]:
    """Output, and gradients of input and parameters, in autocast where the weights are wider."""
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(2, WEIGHT[1], 7, 10, generator=gen).bfloat16().to(dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, dtype != conv.weight.dtype):
        y = conv(x)
    grad = torch.randn(y.shape, generator=gen).bfloat16().to(y.dtype)
    learning = [x, *(p for p in conv.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, learning, grad)]


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("fewest", [0, 1000], ids=["the weight's gradient", "all"])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": 1, "stride": 2}, {"bias": False},
                                      {"padding": (0, 1), "stride": (1, 3)}], ids=str)
def test_gradients(settings: dict[str, object], weights: torch.dtype, fewest: int,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "FEWEST", fewest)
    exact = taught(made(nn.Conv2d, torch.float64, **settings), torch.float64)
    usual = taught(made(nn.Conv2d, weights, **settings), torch.bfloat16)
    found = taught(made(ColumnConv2d, weights, **settings), torch.bfloat16)
    assert [one.shape for one in found] == [one.shape for one in exact]
    assert [one.dtype for one in found] == [one.dtype for one in usual]
    assert [one.stride() for one in found] == [one.stride() for one in usual]    # nothing is laid out anew
    for mine, theirs, right in zip(found, usual, exact, strict=True):
        assert off(mine, right) < 2 * off(theirs, right) + 1e-6
        assert off(mine, right) < 1e-2


@pytest.mark.parametrize("fewest", [0, 1000])
def test_to_the_same_bits_again_and_frozen(fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "FEWEST", fewest)
    conv = made(ColumnConv2d, torch.bfloat16, padding=1)
    first, again = taught(conv, torch.bfloat16), taught(conv, torch.bfloat16)
    assert all(map(torch.equal, first, again))
    frozen = taught(conv.requires_grad_(False), torch.bfloat16)      # as with an adapter that learns elsewhere
    assert len(frozen) == 2 and torch.equal(frozen[1], first[1])


def test_what_it_leaves_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns.Columns, "apply", None)             # would fail if it were called
    for dtype in (torch.float32, torch.float64):
        mine, theirs = (taught(made(kind, dtype, padding=1), dtype) for kind in (ColumnConv2d, nn.Conv2d))
        assert all(map(torch.equal, mine, theirs))
    with torch.no_grad():
        made(ColumnConv2d, torch.bfloat16)(torch.randn(2, WEIGHT[1], 7, 10).bfloat16())
    monkeypatch.setattr(columns, "FEW", 139)      # many pixels
    taught(made(ColumnConv2d, torch.bfloat16, padding=1), torch.bfloat16)
    monkeypatch.setattr(columns, "FEW", 140)
    with pytest.raises(TypeError):
        taught(made(ColumnConv2d, torch.bfloat16, padding=1), torch.bfloat16)


def test_which_convolutions_are_suited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suited(nn.Conv2d(1280, 640, 3, padding=1, device="meta"))
    assert not suited(nn.Conv2d(640, 640, 3, padding=1, device="meta"))         # few weights
    monkeypatch.setattr(columns, "MANY", 1)
    others = ({"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"})
    assert suited(nn.Conv2d(4, 4, 3))
    assert not any(suited(nn.Conv2d(4, 4, 3, **settings)) for settings in others)  # type: ignore[arg-type]
