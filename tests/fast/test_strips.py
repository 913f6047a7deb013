"""A decoder that goes through large pictures in strips: the same picture, seamless, and nothing of it held for long."""

import pytest
import torch
from comparison import difference, random_model
from torch import Tensor

from minisd.config import TINY_VAE
from minisd.fast import strips
from minisd.fast.onednn import inferring
from minisd.fast.passes import plain, quicken
from minisd.fast.strips import StripDecoder, of, through_block
from minisd.layers import ResBlock
from minisd.vae import VAE, Decoder

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 0.06}


@pytest.fixture
def vae() -> VAE:
    return random_model(VAE, TINY_VAE, 0).requires_grad_(False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 3)])
@pytest.mark.parametrize(("strip", "widest"), [(1, 0), (200, 0), (200, 1 << 18), (1 << 14, 0), (1 << 14, 1 << 18)])
def test_the_same_picture(vae: VAE, dtype: torch.dtype, size: tuple[int, int], strip: int, widest: int,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 4, *size, dtype=dtype)
    decoder = vae.to(dtype).decoder
    with torch.inference_mode():
        whole = decoder(z)
        monkeypatch.setattr(strips, "LARGE", 0)
        monkeypatch.setattr(strips, "STRIP", strip)
        monkeypatch.setattr(strips, "WIDEST", widest)
        decoder.__class__ = StripDecoder
        found = decoder(z)
    assert found.shape == whole.shape and found.dtype == dtype
    assert difference(found, whole).relative < TOLERANCE[dtype]


def test_a_picture_does_not_depend_on_its_neighbours(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "LARGE", 64 * 64 - 1)
    monkeypatch.setattr(strips, "STRIP", 1 << 9)
    quicken(vae.decoder, packed=False)
    z = torch.randn(3, 4, 8, 8)
    with torch.inference_mode():
        assert torch.equal(vae.decode(z), torch.cat([vae.decode(one) for one in z.split(1)]))


@pytest.mark.parametrize(("large", "sizes"), [(64 * 64 - 1, []), (64 * 64, [1, 1, 1]), (2 * 64 * 64, [2, 1]),
                                              (3 * 64 * 64, [3])])
def test_how_many_are_decoded_whole_at_once(vae: VAE, large: int, sizes: list[int],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spied(self: Decoder, z: Tensor) -> Tensor:
        seen.append(len(z))
        return z

    monkeypatch.setattr(strips, "LARGE", large)
    monkeypatch.setattr(Decoder, "forward", spied)
    quicken(vae.decoder, packed=False)
    with torch.inference_mode():
        vae.decode(torch.randn(3, 4, 8, 8))
    assert seen == sizes


def test_whoever_asks_for_gradients_has_them(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "LARGE", 0)
    z = torch.randn(1, 4, 4, 4, requires_grad=True)
    decoder = quicken(vae.decoder, packed=False)
    assert not inferring() and torch.autograd.grad(decoder(z).sum(), z)[0].abs().sum() > 0
    assert type(decoder) is StripDecoder and type(plain(decoder)) is Decoder


@pytest.mark.parametrize("channels", [(16, 16), (16, 8)], ids=["as wide", "narrower"])
def test_a_block_leaves_its_input_as_it_was(channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each strip needs a row of what the one before it has written over."""
    monkeypatch.setattr(strips, "STRIP", 12)      # two rows
    block, x = ResBlock(*channels, 4, 1e-6).requires_grad_(False), torch.randn(1, 16, 11, 6)
    kept = x.clone()
    with torch.inference_mode():
        assert torch.allclose(through_block(block, of(x)), block(x), atol=1e-5)
    assert torch.equal(x, kept)
