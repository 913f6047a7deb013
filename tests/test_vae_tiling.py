"""Decoding in strips is decoding: the same picture to 1/255 and far better, whatever the strips."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minisd import vae_tiling
from minisd.config import TINY_VAE, VAEConfig
from minisd.layers import ResBlock
from minisd.vae import VAE
from minisd.vae_tiling import Rows, decode_in_strips, those_of


def random_vae(cfg: VAEConfig = TINY_VAE) -> VAE:
    """Norms and biases are random too, so that a wrong one shows."""
    torch.manual_seed(0)
    vae = VAE(cfg).eval().requires_grad_(False)
    for weights in vae.parameters():
        if weights.dim() == 1:
            weights.add_(0.3 * torch.randn_like(weights))
    return vae


def of(x: torch.Tensor) -> Rows:
    return those_of(x, 0, x.shape[2])


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (12, 3), (1, 1)])
@pytest.mark.parametrize("pixels", [1, 200, 1000, 1 << 17])
def test_strips_make_the_same_picture(size: tuple[int, int], pixels: int) -> None:
    vae, z = random_vae(), torch.randn(2, 4, *size)
    whole, strips = vae.decode(z), decode_in_strips(vae, z, pixels)
    assert strips.shape == whole.shape
    difference = (strips - whole).abs().max().item()
    assert difference < 1e-4 * whole.abs().max().item(), f"{difference:.1e} of {whole.abs().max():.2f}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    vae, z = random_vae().to(dtype), torch.randn(1, 4, 8, 8).to(dtype)
    whole, strips = vae.decode(z), decode_in_strips(vae, z, 500)
    assert strips.dtype == dtype
    assert (strips - whole).abs().max() < tolerance * whole.abs().max()


def test_one_bright_corner_reaches_the_far_one() -> None:
    """What tiles that are decoded alone get wrong: the receptive field is the whole picture."""
    vae, dark = random_vae(), torch.zeros(1, 4, 16, 4)
    bright = dark.clone()
    bright[:, :, 0, 0] = 20
    far = (decode_in_strips(vae, bright, 256) - decode_in_strips(vae, dark, 256))[:, :, -8:]
    assert far.abs().max() > 1e-2
    expected = (vae.decode(bright) - vae.decode(dark))[:, :, -8:]
    assert (far - expected).abs().max() < 1e-4


def test_a_factor_of_four_and_wide_groups() -> None:
    vae = random_vae(replace(TINY_VAE, widths=(16, 32, 48), layers=2, groups=16))
    z = torch.randn(1, 4, 6, 7)
    assert (decode_in_strips(vae, z, 100) - vae.decode(z)).abs().max() < 1e-4


def test_the_parts() -> None:
    x = torch.randn(1, 8, 13, 6)
    conv, norm = nn.Conv2d(8, 5, 3, padding=1), nn.GroupNorm(4, 8, eps=1e-6)
    norm.weight.data.normal_()
    rows = of(x)
    for start, stop in ((0, 13), (0, 1), (12, 13), (3, 8)):
        assert torch.allclose(vae_tiling.convolved(conv, rows).read(start, stop), conv(x)[:, :, start:stop], atol=1e-6)
        normed = vae_tiling.passed(vae_tiling.normed(norm, rows, 7), rows)
        assert torch.allclose(normed.read(start, stop), F.silu(norm(x))[:, :, start:stop], atol=1e-5)
    big = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    for start, stop in ((0, 26), (0, 1), (25, 26), (3, 8), (4, 7)):
        assert torch.allclose(vae_tiling.enlarged(conv, rows).read(start, stop), big[:, :, start:stop], atol=1e-6)


def test_strips_are_let_go_once_the_next_block_has_come_by() -> None:
    x, forgotten = torch.randn(1, 16, 24, 4), list[int]()
    held = vae_tiling.kept(of(x), 16)             # strips of four rows, two of them in one piece
    held.forget(9)
    assert torch.equal(held.read(8, 24), x[:, :, 8:])
    with pytest.raises(ValueError, match="empty"):
        held.read(0, 8)
    block = ResBlock(16, 16, 4, 1e-6).requires_grad_(False)
    rows = vae_tiling.through_block(block, replace(of(x), forget=forgotten.append), 16)
    assert torch.allclose(vae_tiling.kept(rows, 16).read(0, 24), block(x), atol=1e-5)
    assert forgotten == [2, 6, 10, 14, 18, 22]    # of strips that end two rows further
    vae_tiling.enlarged(nn.Conv2d(16, 16, 3).requires_grad_(False), rows).forget(20)
    assert forgotten[-1] == 20 // 2 - 1 - 2


def test_small_variances_far_from_zero_are_kept() -> None:
    x = 1000 + 0.01 * torch.randn(1, 4, 64, 64, dtype=torch.float64)
    mean, var = vae_tiling.statistics(nn.GroupNorm(2, 4, eps=1e-6), of(x), 100)
    exact = x.view(2, -1)
    assert torch.allclose(mean, exact.mean(dim=1).repeat_interleave(2), rtol=1e-9)
    assert torch.allclose(var, exact.var(dim=1, correction=0).repeat_interleave(2), rtol=1e-4)
