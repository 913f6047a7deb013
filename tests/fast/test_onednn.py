"""Layers through oneDNN: their results, and that gradients and autocast are PyTorch's own."""

import copy
import time

import pytest
import torch
from torch import nn

from minisd.fast import onednn
from minisd.fast.onednn import (
    OneDNNLinear,
    OneDNNPoint,
    PackedConv2d,
    PackedLinear,
    dense,
    pack,
    pack_linear,
    product,
    serves,
    unpack,
    unpack_linear,
)
from minisd.fast.passes import quicken

pytestmark = pytest.mark.skipif(not serves(torch.zeros(1)), reason="PyTorch was built without oneDNN")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if serves(torch.zeros(1, dtype=dtype))]


def frozen(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return module.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "stride"), [((2, 8, 8), 1), ((1, 5, 7), 1), ((3, 9, 6), 2), ((2, 64, 64), 1)])
def test_a_packed_convolution_keeps_every_bit(dtype: torch.dtype, size: tuple[int, ...], stride: int) -> None:
    conv = frozen(nn.Conv2d(32, 48, 3, stride, padding=1), dtype).to(memory_format=torch.channels_last)
    x = torch.randn(size[0], 32, *size[1:]).to(dtype).to(memory_format=torch.channels_last)
    weight = conv.weight.clone()
    with torch.inference_mode():
        y = conv(x)
    pack(conv)
    conv.__class__ = PackedConv2d
    assert conv.weight.is_mkldnn and conv.weight.shape == weight.shape and torch.equal(dense(conv.weight), weight)
    assert torch.equal(conv.state_dict()["weight"], weight)
    with torch.inference_mode():
        found = conv(x)
    torch.testing.assert_close(found, y)
    assert size[0] == 1 or torch.equal(found, y)  # one small picture PyTorch gives to a kernel of its own
    unpack(conv)
    assert torch.equal(conv.weight, weight) and conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [64, 96, 128, 192, 320, 384])
def test_no_size_of_picture_pays_for_the_order_of_another(dtype: torch.dtype, channels: int) -> None:
    """In the wrong order a convolution takes 30 to 150 times as long; to put it in order each time costs at most 5."""
    conv = frozen(nn.Conv2d(64, channels, 3, padding=1), dtype).to(memory_format=torch.channels_last)
    fast = quicken(nn.Sequential(copy.deepcopy(conv)))
    assert (type(fast[0]) is PackedConv2d) == (channels % 48 != 0)
    for side in (4, 8, 16, 32):
        x = torch.randn(2, 64, side, side).to(dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            assert seconds(fast, x) < 6 * seconds(conv, x) + 2e-4, f"{side}x{side}"


def seconds(layer: nn.Module, x: torch.Tensor) -> float:
    """Of the processor, at best."""
    found = []
    for _ in range(5):
        start = time.process_time()
        layer(x)
        found.append(time.process_time() - start)
    return min(found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_products(dtype: torch.dtype, channels_last: bool) -> None:
    x = torch.randn(2, 16, 5, 6).to(dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    point, linear = frozen(nn.Conv2d(16, 24, 1), dtype), frozen(nn.Linear(16, 24, bias=False), dtype)
    tokens = x.flatten(2).transpose(1, 2)
    with torch.inference_mode():
        wanted = point(x), linear(tokens)
        point.__class__, linear.__class__ = OneDNNPoint, OneDNNLinear
        found = point(x), linear(tokens)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "out"), [(320, 320), (64, 1280), (96, 48), (77, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_keeps_every_bit(dtype: torch.dtype, channels: int, out: int, bias: bool) -> None:
    linear = frozen(nn.Linear(channels, out, bias=bias), dtype)
    weight = linear.weight.clone()
    tokens = [torch.randn(*rows, channels).to(dtype) for rows in ((2,), (3, 77), (2, 1024))]
    with torch.inference_mode():
        wanted = [product(x, linear.weight, linear.bias) for x in tokens]
        pack_linear(linear)
        linear.__class__ = PackedLinear
        assert linear.weight.is_mkldnn and linear.weight.shape == weight.shape
        assert torch.equal(linear.state_dict()["weight"], weight)
        for x, y in zip(tokens, wanted, strict=True):
            torch.testing.assert_close(linear(x), y)
        assert torch.equal(linear(tokens[-1]), wanted[-1])            # of few rows sums are in another order
    unpack_linear(linear)
    assert torch.equal(linear.weight, weight) and not linear.weight.is_mkldnn


def test_gradients_flow_through_every_layer() -> None:
    layers = [frozen(nn.Conv2d(16, 16, 3, padding=1)), frozen(nn.Conv2d(16, 16, 1)), frozen(nn.Linear(16, 16)),
              frozen(nn.Linear(16, 16))]
    x = torch.randn(1, 16, 16, 16, requires_grad=True)
    wanted = [torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in layers]
    pack(layers[0])
    pack_linear(layers[3])
    kinds = (PackedConv2d, OneDNNPoint, OneDNNLinear, PackedLinear)
    for layer, kind, gradient in zip(layers, kinds, wanted, strict=True):
        layer.__class__ = kind
        found, = torch.autograd.grad(layer(x).square().sum(), x)
        torch.testing.assert_close(found, gradient)


def test_autocast_computes_in_its_own_dtype() -> None:
    layer = frozen(nn.Linear(16, 16))
    layer.__class__ = OneDNNLinear
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 16)).dtype == torch.bfloat16


def test_whom_onednn_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not serves(torch.zeros(1, requires_grad=True))
    assert not serves(torch.zeros(1, dtype=torch.float64)) and not serves(torch.zeros(1, dtype=torch.float16))
    assert not serves(torch.zeros(1, device="meta"))
    monkeypatch.setattr(onednn, "HERE", False)
    assert not serves(torch.zeros(1))
