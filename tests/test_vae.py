"""The autoencoder: exact size, shapes, the padding of its downsampling, and the Gaussian between its halves."""

from dataclasses import replace

import pytest
import torch
from comparison import assert_close, on_meta, random_model

from minisd.config import TINY_VAE, ModelConfig, VAEConfig
from minisd.vae import VAE, Posterior, Stage


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_parameters():
    assert sum(p.numel() for p in on_meta(VAE, VAEConfig()).parameters()) == 83_653_863


@pytest.mark.parametrize("size", [(512, 512), (8, 1024), (776, 344)], ids=str)
def test_shapes_of_the_full_size_model(size):
    vae, (height, width) = on_meta(VAE, VAEConfig()), size
    posterior = vae.encode(torch.empty(1, 3, height, width, device="meta"))
    assert posterior.mean.shape == posterior.logvar.shape == (1, 4, height // 8, width // 8)
    assert vae.decode(posterior.mean).shape == (1, 3, height, width)


@pytest.mark.parametrize("cfg", [replace(TINY_VAE, widths=(8, 16)), replace(TINY_VAE, latent_channels=16, channels=4)])
def test_other_shapes(cfg):
    vae = random_model(VAE, cfg)
    noise = normal(1, cfg.latent_channels, 16 // cfg.factor, 24 // cfg.factor)
    picture, posterior = vae(normal(1, cfg.channels, 16, 24), noise)
    assert picture.shape == (1, cfg.channels, 16, 24)
    assert posterior.mean.shape[1] == cfg.latent_channels


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (7, 7)], ids=str)
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"picture of {size[1]}x{size[0]}: both sides must be multiples of 8"):
        random_model(VAE, TINY_VAE).encode(torch.zeros(1, 3, *size))


def test_downsampling_pads_right_and_below_only():
    stage = Stage(4, 4, layers=0, groups=4, resize="down")
    with torch.no_grad():
        stage.downsample.weight.copy_(torch.eye(4)[:, :, None, None] * torch.eye(3)[0, :, None] * torch.eye(3)[0])
        stage.downsample.bias.zero_()
    x = normal(1, 4, 6, 8)
    assert torch.equal(stage(x), x[:, :, ::2, ::2])  # the kernel's first corner sees even pixels, and no padding


def test_posterior_sample():
    posterior = Posterior(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 2.0]).log())
    assert torch.equal(posterior.sample(torch.tensor([3.0, 4.0])), torch.tensor([1.0, -2.0 + 4 * 2 ** 0.5]))
    assert torch.equal(posterior.sample(torch.zeros(2)), posterior.mean)


def test_posterior_divergence_is_zero_at_the_standard_normal_and_as_computed_elsewhere():
    assert Posterior(torch.zeros(3), torch.zeros(3)).kl() == 0
    mean, logvar = normal(5), normal(5, seed=2)
    p = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0)).mean()
    assert Posterior(mean, logvar).kl().item() == pytest.approx(expected.item(), rel=1e-5)


def test_log_variance_is_bounded():
    vae = random_model(VAE, TINY_VAE, gain=30.0)
    logvar = vae.encode(normal(1, 3, 32, 32)).logvar
    assert logvar.min() == -30 and logvar.max() == 20


def test_forward_is_encode_sample_decode():
    vae = random_model(VAE, TINY_VAE)
    x, noise = normal(2, 3, 16, 16), normal(2, 4, 2, 2, seed=2)
    picture, posterior = vae(x, noise)
    assert torch.equal(picture, vae.decode(posterior.sample(noise)))
    assert torch.equal(posterior.mean, vae.encode(x).mean)


def test_a_picture_does_not_depend_on_its_batch():
    vae = random_model(VAE, TINY_VAE)
    z = normal(3, 4, 4, 4)
    for n in range(3):
        assert_close(f"picture {n}", vae.decode(z)[n:n + 1], vae.decode(z[n:n + 1]), 2e-6)


def test_the_scale_is_the_models_and_not_the_autoencoders():
    assert ModelConfig().latent_scale == 0.18215
    assert [name for name in vars(VAEConfig()) if "scale" in name] == []
