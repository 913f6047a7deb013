"""PSNR and SSIM in cases that can be computed by hand; skimage is asked in tests/reference."""

import pytest
import torch

from minisd.evaluate.similarity import blurred, psnr, ssim


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_psnr_of_a_constant_error():
    x = pictures(2, 3, 16, 16) / 2
    errors = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)    # of a range of 2: a tenth and a hundredth
    assert psnr(x, x + errors).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)
    assert psnr(x, x).tolist() == [float("inf")] * 2


def test_equal_pictures_are_alike_and_inverted_ones_are_not():
    x = pictures(2, 3, 32, 24)
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert ssim(x, -x).max() < -0.8


def test_flat_pictures_differ_by_luminance_alone():
    a, b, c1 = 0.75, 0.375, 0.01 ** 2             # of white
    x, y = torch.full((1, 1, 11, 11), 2 * a - 1), torch.full((1, 1, 11, 11), 2 * b - 1)
    assert ssim(x, y).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-6)


def test_each_pair_is_measured_alone():
    x, y = pictures(3, 3, 20, 20), pictures(3, 3, 20, 20).flip(-1)
    alone = torch.cat([ssim(x[n:n + 1], y[n:n + 1]) for n in range(3)])
    assert torch.allclose(ssim(x, y), alone, rtol=1e-12)


def test_the_window_lies_wholly_in_the_picture():
    x = pictures(2, 3, 16, 12).double()
    assert blurred(x).shape == (2, 3, 6, 2)
    assert torch.allclose(blurred(torch.ones_like(x)), torch.ones(()).double())
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pictures(1, 3, 10, 64), pictures(1, 3, 10, 64))
