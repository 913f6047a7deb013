"""A UNet's doubled pictures by four smaller kernels: beside the plain way in float64, and what is left to the plain."""

from dataclasses import replace

import pytest
import torch
from comparison import difference, random_model
from torch import Tensor, nn

from minisd import attach
from minisd.config import TINY
from minisd.fast import doubling
from minisd.fast.doubling import DoublingConv2d, DoublingStage
from minisd.fast.onednn import serves
from minisd.fast.passes import plain, quicken
from minisd.unet import Stage, UNet

CFG = replace(TINY, widths=(32, 64), depths=(0, 0), mid_depth=None, layers=1, groups=4)
ROUNDING = 1e-5                                  # of float32, where sums of 576 are added up in another order
pytestmark = pytest.mark.skipif(not serves(torch.zeros(1)), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubling, "FEWEST", 1)


def stage() -> Stage:
    """The lower way up of a small UNet."""
    found = random_model(UNet, CFG, 0).requires_grad_(False).up[0]
    assert type(found) is Stage
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)], ids=str)
@pytest.mark.parametrize("size", [(2, 8, 6), (1, 16, 16), (3, 1, 7), (1, 33, 2)])
def test_the_same_picture_in_every_size(dtype: torch.dtype, tolerance: float, size: tuple[int, ...]) -> None:
    if not serves(torch.zeros(1, dtype=dtype)):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
    made, (b, h, w) = stage().to(dtype), size
    x, twice = torch.randn(b, 64, h, w).to(dtype), torch.Size((2 * h, 2 * w))
    with torch.inference_mode():
        exact = stage().double().enlarged(x.double(), twice)
        quicken(made)
        assert type(made) is DoublingStage and type(made.upsample) is DoublingConv2d
        found = made.enlarged(x, twice)
    assert found.shape == exact.shape and found.dtype == dtype
    assert ((found.double() - exact).square().mean().sqrt() / exact.std()) < tolerance


@pytest.mark.parametrize(("stages", "phased"), [(2, [True]), (3, [True, True]), (4, [False, True, True])])
def test_of_three_doublings_the_smallest_is_not_worth_its_memory(stages: int, phased: list[bool]) -> None:
    cfg = replace(CFG, widths=(32,) * stages, depths=(0,) * stages)
    exact, unet = (random_model(UNet, cfg, 0).requires_grad_(False) for _ in range(2))
    quicken(unet)
    assert [type(stage.upsample) is DoublingConv2d for stage in unet.up[:-1]] == phased
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([3.0]), torch.randn(1, 5, cfg.context_dim)
    with torch.inference_mode():
        assert difference(unet(x, t, context), exact(x, t, context)).relative < ROUNDING


def test_what_is_left_to_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = quicken(stage()), torch.randn(1, 64, 5, 4)
    monkeypatch.setattr(DoublingConv2d, "doubled", None)          # would fail if it were called
    with torch.inference_mode():
        for odd in ((9, 8), (10, 7), (9, 7)):                    # as a way down from odd sizes is gone up again
            size = torch.Size(odd)
            assert difference(made.enlarged(x, size), stage().enlarged(x, size)).relative < ROUNDING
        with pytest.raises(TypeError):
            made.enlarged(x, torch.Size((10, 8)))
        monkeypatch.setattr(doubling, "FEWEST", 21)
        made.enlarged(x, torch.Size((10, 8)))                    # small
        monkeypatch.setattr(doubling, "FEWEST", 1)
    made.enlarged(x.requires_grad_(), torch.Size((10, 8))).sum().backward()
    assert x.grad is not None
    odd_channels = nn.Conv2d(64, 96, 3, padding=1)               # whose order depends on the picture's size
    assert not doubling.packable(odd_channels) and not doubling.packable(nn.Conv2d(64, 12, 3))


def test_the_way_back_and_other_weights() -> None:
    made, x = stage(), torch.randn(2, 64, 4, 4)
    twice = torch.Size((8, 8))
    made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        before = made.enlarged(x, twice)
        weights = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        quicken(made)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in made.state_dict().items())
        assert type(plain(made)) is Stage and torch.equal(made.enlarged(x, twice), before)
        assert type(made.upsample) is nn.Conv2d and not list(made.upsample.buffers())
    changed(made, x, twice, before)


def changed(made: Stage, x: Tensor, size: torch.Size, before: Tensor) -> None:
    """An adapter beside the convolution, and its weight with the adapter's added, count after a drawing."""
    quicken(made)
    for side in attach.attach(made, attach.LoRASpec("a", targets=("upsample",)), torch.Generator().manual_seed(0)):
        side.requires_grad_(False).fill_(0.1)
    with torch.inference_mode():
        beside = quicken(made).enlarged(x, size)
        merged = attach.merge(made)
        assert difference(quicken(made).enlarged(x, size), beside).relative < ROUNDING
        assert difference(beside, before).relative > 1e-3
        merged.undo()
        attach.detach(made, "a")
        assert difference(quicken(made).enlarged(x, size), before).relative < ROUNDING
