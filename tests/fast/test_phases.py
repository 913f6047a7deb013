"""Doubled and convolved by phases: beside the plain way in float64."""

import pytest
import torch
from torch import Tensor, nn

from minisd.fast import phases
from minisd.fast.onednn import inferring
from minisd.fast.phases import PhasedStage
from minisd.vae import Stage


def stage(bias: bool = True) -> Stage:
    """An upsampling and no blocks."""
    made = Stage(6, 6, 0, 2, resize="up").requires_grad_(False)
    made.upsample = nn.Conv2d(6, 5, 3, padding=1, bias=bias).requires_grad_(False)
    return made


@pytest.mark.parametrize(("dtype", "tolerance"),
                         [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("size", [(3, 8, 5), (1, 1, 1), (2, 1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_picture(dtype: torch.dtype, tolerance: float, size: tuple[int, ...], bias: bool,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "FEWEST", 1)
    monkeypatch.setattr(phases, "STRIP", 16)      # several, the last one shorter
    plain, x = stage(bias).to(dtype), torch.randn(size[0], 6, *size[1:]).to(dtype)
    with torch.inference_mode():
        before = plain(x)
        plain.__class__ = PhasedStage
        found = plain(x)
        plain.__class__ = Stage
        assert torch.equal(plain(x), before)
        exact = plain.double()(x.double())
    assert found.shape == before.shape and found.dtype == dtype
    assert ((found.double() - exact).square().mean().sqrt() / exact.std(correction=0).clamp(min=0.1)) < tolerance


def test_what_it_leaves_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "Phases", None)   # would fail if it were called
    made, x = stage(), torch.randn(1, 6, 4, 4, requires_grad=True)
    made.__class__ = PhasedStage
    with torch.inference_mode():
        made(x)                                   # small
    monkeypatch.setattr(phases, "FEWEST", 1)
    torch.autograd.grad(made(x).sum(), x)         # with gradients
    assert not inferring()
    with torch.inference_mode(), pytest.raises(TypeError):
        made(x)
    made.upsample = type("Other", (nn.Conv2d,), {})(6, 5, 3, padding=1)
    with torch.inference_mode():
        made(x)                                   # somebody else's convolution
    down = Stage(6, 6, 0, 2, resize="down")
    wanted: Tensor = down(x)
    down.__class__ = PhasedStage
    with torch.inference_mode():
        assert torch.equal(down(x), wanted)
