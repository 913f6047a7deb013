"""The measures beside other implementations: scipy's matrix root, skimage's PSNR and SSIM."""

import numpy as np
import pytest
import torch

from minisd.evaluate.frechet import fitted, frechet
from minisd.evaluate.similarity import psnr, ssim

linalg = pytest.importorskip("scipy.linalg", reason="comes with scikit-image, in the extra dev")
metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is in the extra dev")


def features(n: int, d: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64) / d ** 0.5
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + torch.randn(d, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("n, m, d, rel", [(500, 300, 16, 1e-10), (1000, 800, 192, 1e-8), (60, 50, 96, 1e-5)])
def test_frechet_distance_with_scipys_root(n: int, m: int, d: int, rel: float):
    """With fewer pictures than features the product is singular: there scipy's root itself is good to 6 digits."""
    x, y = features(n, d, 0), features(m, d, 1)
    p, q = fitted(x), fitted(y)
    cross = linalg.sqrtm(p.covariance.numpy() @ q.covariance.numpy())
    expected = ((p.mean - q.mean).square().sum().item() + np.trace(p.covariance) + np.trace(q.covariance)
                - 2 * np.trace(cross).real)
    assert frechet(x, y) == pytest.approx(expected, rel=rel)


def test_moments_are_numpys():
    x = features(40, 8, 2)
    assert np.abs(fitted(x).covariance.numpy() - np.cov(x.numpy(), rowvar=False)).max() < 1e-12
    assert np.abs(fitted(x).mean.numpy() - x.numpy().mean(axis=0)).max() < 1e-12


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("size", [(11, 11), (64, 48), (128, 128)])
def test_psnr_and_ssim_are_skimages(size: tuple[int, int], noise: float):
    g = torch.Generator().manual_seed(3)
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=g), size, mode="bicubic") * 2 - 1
    y = (x + noise * torch.randn(x.shape, generator=g)).clamp(-1, 1)
    for n in range(2):
        one, other = ((t[n].permute(1, 2, 0).double().numpy() + 1) / 2 for t in (x, y))
        expected = metrics.structural_similarity(one, other, channel_axis=2, data_range=1.0, gaussian_weights=True,
                                                 sigma=1.5, use_sample_covariance=False)
        assert ssim(x, y)[n].item() == pytest.approx(expected, abs=1e-9)
        expected = metrics.peak_signal_noise_ratio(one, other, data_range=1.0)
        assert psnr(x, y)[n].item() == pytest.approx(expected, abs=1e-9)
