"""What of a network that learns is computed faster: as much as wins, for as long as it is asked."""

import pytest
import torch
from comparison import random_model

from minisd.config import TINY
from minisd.fast import backward, columns, learning
from minisd.fast.backward import LearningAttention
from minisd.fast.columns import ColumnConv2d
from minisd.fast.onednn import computes
from minisd.layers import Attention
from minisd.train.recompute import lighten
from minisd.unet import UNet

pytestmark = pytest.mark.skipif(not computes(torch.bfloat16), reason="oneDNN does not compute in bfloat16 here")
SERVED = {ColumnConv2d, LearningAttention}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers as well."""
    monkeypatch.setattr(learning, "worthwhile", lambda: True)
    monkeypatch.setattr(columns, "MANY", 1)
    monkeypatch.setattr(backward, "LARGE", 1)


def kinds(unet: UNet) -> set[type]:
    return {type(module) for module in unet.modules()}


def gradients(unet: UNet, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    x, context = (torch.randn(*shape, generator=gen) for shape in ((2, 4, 16, 16), (2, 7, TINY.context_dim)))
    with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
        out = unet(x.to(memory_format=torch.channels_last), torch.tensor([3, 700]), context)
    out.float().square().mean().backward()
    found = {name: p.grad.clone() for name, p in unet.named_parameters()}
    unet.zero_grad()
    return found


def made() -> UNet:
    unet: UNet = random_model(UNet, TINY).requires_grad_(True)
    return unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("lighter", [False, True], ids=["kept", "recomputed"])
def test_a_whole_network(lighter: bool, everywhere: None) -> None:
    unet = made()
    if lighter:
        lighten(unet)
    before = kinds(unet)
    exact, usual = (gradients(unet, dtype) for dtype in (torch.float32, torch.bfloat16))
    with learning.learning(unet):
        assert kinds(unet) >= SERVED
        found, again = (gradients(unet, torch.bfloat16) for _ in range(2))
    assert kinds(unet) == before and not before & SERVED

    def off(those: dict[str, torch.Tensor]) -> float:
        return sum(float((those[name] - grad).square().sum()) for name, grad in exact.items()) ** 0.5
    assert all(torch.equal(grad, again[name]) for name, grad in found.items())
    assert any(not torch.equal(grad, usual[name]) for name, grad in found.items())
    assert 0 < off(found) < 1.25 * off(usual)


def test_small_networks_keep_their_bits() -> None:
    """Results that were published before this existed can be made again."""
    unet = made()
    for dtype in (torch.float32, torch.bfloat16):
        usual = gradients(unet, dtype)
        with learning.learning(unet):
            assert LearningAttention in kinds(unet) or not learning.worthwhile()
            assert all(torch.equal(grad, usual[name]) for name, grad in gradients(unet, dtype).items())


def test_classes_come_back_after_a_fault() -> None:
    unet = made()
    with pytest.raises(RuntimeError), learning.learning(unet):
        raise RuntimeError
    assert Attention in kinds(unet) and not kinds(unet) & SERVED


def test_processors_with_amx_keep_pytorchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "worthwhile", lambda: False)
    unet = made()
    with learning.learning(unet):
        assert LearningAttention not in kinds(unet)
