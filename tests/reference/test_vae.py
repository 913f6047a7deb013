"""The autoencoder beside diffusers', layer by layer, both ways."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from comparison import assert_close, norms, random_model, with_eps
from conftest import TOLERANCE
from torch import nn

from minisd.config import TINY_VAE, VAEConfig
from minisd.vae import VAE

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from reference.peers import vae_like  # noqa: E402
from reference.side_by_side import compare_decoders, compare_encoders, normal  # noqa: E402

TOL = TOLERANCE[torch.float32]
SMALL = 1e-4  # eps is smaller here than in the UNet
CONFIGS = {"SD1.5": VAEConfig(widths=(8, 16, 32, 32), groups=4), "tiny": TINY_VAE,
           "16 latent channels": replace(TINY_VAE, latent_channels=16)}  # in miniature


@cache
def pair(cfg: VAEConfig, gain: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    ours = random_model(VAE, cfg, gain=gain).to(dtype)
    return ours, vae_like(ours)


@pytest.mark.parametrize("gain", [1.0, SMALL], ids=["ordinary", "small activations"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer(name, gain, measured):
    ours, theirs = pair(CONFIGS[name], gain)
    measured("VAE encoder beside diffusers", compare_encoders(ours, theirs, normal(2, 3, 32, 32, gain=gain), TOL))
    latents = normal(2, ours.cfg.latent_channels, 4, 4, gain=gain)
    measured("VAE decoder beside diffusers", compare_decoders(ours, theirs, latents, TOL))


def test_every_layer_in_bfloat16(measured):
    ours, theirs = pair(TINY_VAE, dtype=torch.bfloat16)
    allowed = TOLERANCE[torch.bfloat16]
    x, z = normal(2, 3, 32, 32).bfloat16(), normal(2, 4, 4, 4).bfloat16()
    measured("VAE encoder beside diffusers, bfloat16", compare_encoders(ours, theirs, x, allowed))
    measured("VAE decoder beside diffusers, bfloat16", compare_decoders(ours, theirs, z, allowed))


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (56, 8)], ids=str)
def test_every_multiple_of_8_pixels(size):
    ours, theirs = pair(TINY_VAE)
    compare_encoders(ours, theirs, normal(1, 3, *size), TOL)
    compare_decoders(ours, theirs, normal(1, 4, size[0] // 8, size[1] // 8), TOL)


def test_the_variance_is_bounded_alike():
    ours, theirs = pair(TINY_VAE, gain=30.0)  # its answers are far beyond the bounds
    logvar = ours.encode(normal(2, 3, 32, 32)).logvar
    assert logvar.max() == 20 and logvar.min() == -30
    compare_encoders(ours, theirs, normal(2, 3, 32, 32), TOL)


def test_samples_and_divergence():
    ours, theirs = pair(TINY_VAE)
    posterior, expected = ours.encode(normal(2, 3, 32, 32)), theirs.encode(normal(2, 3, 32, 32)).latent_dist
    drawn = expected.sample(generator=torch.Generator().manual_seed(3))
    assert_close("sample", posterior.sample(normal(*drawn.shape, seed=3)), drawn, TOL)
    per_latent = expected.kl().sum() / expected.mean.numel()  # theirs is a sum per picture
    assert_close("kl", posterior.kl()[None], per_latent[None], 1e-6)


@pytest.mark.parametrize("norm", [
    "encoder.down.0.res.0.norm1", "encoder.down.3.res.0.norm2", "encoder.mid.attn.norm", "encoder.norm_out"])
def test_a_wrong_eps_shows_and_is_named_in_the_encoder(norm):
    ours, theirs = pair(TINY_VAE, SMALL)
    assert norms(ours)[norm] == 1e-6
    with pytest.raises(AssertionError, match=f"^{re.escape(norm)}: largest difference"):
        compare_encoders(with_eps(ours, norm, 1e-5), theirs, normal(2, 3, 32, 32, gain=SMALL), tolerance=1e-2)


@pytest.mark.parametrize("norm", [
    "decoder.mid.res.1.norm2", "decoder.mid.attn.norm", "decoder.up.2.res.1.norm1", "decoder.norm_out"])
def test_a_wrong_eps_shows_and_is_named_in_the_decoder(norm):
    ours, theirs = pair(TINY_VAE, SMALL)
    with pytest.raises(AssertionError, match=f"^{re.escape(norm)}: largest difference"):
        compare_decoders(with_eps(ours, norm, 1e-5), theirs, normal(2, 4, 4, 4, gain=SMALL), tolerance=1e-2)
