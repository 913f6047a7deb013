"""The VAE's task: terms, the adversary's two sides, the scale, PSNR."""

import math
from dataclasses import replace

import pytest
import torch

from minisd import store
from minisd.train.config import DataConfig, VAETask
from minisd.train.data import Pictures
from minisd.train.draws import Draws
from minisd.train.tasks import vae as module
from minisd.train.tasks.vae import PatchCritic, TrainVAE, psnr

DATA = DataConfig(size=64)


@pytest.fixture
def task(recipe, pictures, tmp_path):
    def make(**options):
        return TrainVAE(recipe.model, VAETask(**options), tmp_path / "model", Pictures(pictures, DATA, 0, "holdout"), 0)
    return make


@pytest.fixture
def batch(pictures):
    return Pictures(pictures, DATA, 0).batch([0, 1, 2])


def losses(task, batch, step=0):
    return task.loss(batch, Draws(0, [0, 1, 2]), step)


def test_terms_are_weighted_and_their_values_the_closed_forms(task, batch):
    one, two = (losses(task(l2=l2, kl=kl), batch) for l2, kl in ((1.0, 1e-4), (3.0, 1e-2)))
    assert one.keys() == {"l1", "l2", "kl"} and one["l1"] == two["l1"]
    assert two["l2"].item() == pytest.approx(3 * one["l2"].item()) and two["kl"].item() == pytest.approx(
        100 * one["kl"].item())
    made = task()
    with torch.no_grad():
        posterior = made.vae.encode(batch.pixels)
        out = made.vae.decode(posterior.sample(Draws(0, [0, 1, 2]).normal(4, 8, 8)))
        mean, logvar = posterior
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    assert one["l1"].item() == pytest.approx((out - batch.pixels).abs().mean().item(), rel=1e-5)
    assert one["l2"].item() == pytest.approx(((out - batch.pixels) ** 2).mean().item(), rel=1e-5)
    assert one["kl"].item() == pytest.approx(1e-4 * kl.item(), rel=1e-4)


def test_a_decoder_alone_leaves_the_encoder_and_the_scale(task, batch, recipe, tmp_path):
    made = task(decoder_only=True)
    terms = losses(made, batch)
    assert "kl" not in terms
    terms["l1"].backward()
    assert all(p.grad is None and not p.requires_grad for p in made.vae.encoder.parameters())
    made.export(tmp_path / "out")
    assert store.read_config(tmp_path / "out").latent_scale == recipe.model.latent_scale


def test_the_adversary_waits_for_its_step_and_its_weights_follow_from_the_seed(task, batch):
    made, again = task(adversary=0.1, adversary_from=5), task(adversary=0.1)
    assert "critic" not in losses(made, batch, 4)
    assert losses(made, batch, 5).keys() == {"l1", "l2", "kl", "critic", "fool"}
    one, two = (t.modules["critic"].state_dict() for t in (made, again))
    assert all(torch.equal(t, two[name]) for name, t in one.items())


def test_each_side_of_the_adversary_moves_its_own_weights(task, batch):
    made = task(adversary=0.1)
    critic = list(made.modules["critic"].parameters())
    losses(made, batch)["fool"].backward()
    assert all(p.grad is None for p in critic) and any(p.grad is not None for p in made.vae.decoder.parameters())
    made.modules.zero_grad()
    losses(made, batch)["critic"].backward()
    assert all(p.grad is not None for p in critic) and all(p.grad is None for p in made.vae.parameters())


def test_the_hinge(task, batch, monkeypatch):
    """Critic: half of [1 - real]+ plus [1 + fake]+; generator: minus its verdict."""
    made = task(adversary=0.5)
    x = batch.pixels
    with torch.no_grad():
        real, fake = made.modules["critic"](x), made.modules["critic"](-x)
    terms = made.adversary(x, -x)
    expected = ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean() / 2
    assert terms["critic"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["fool"].item() == pytest.approx(-0.5 * fake.mean().item(), rel=1e-4, abs=1e-7)


def test_a_patch_is_34_pixels():
    critic = PatchCritic()
    assert critic(torch.zeros(1, 3, 64, 48)).shape == (1, 1, 14, 10)
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    conv_only = torch.nn.Sequential(*[layer for layer in critic.layers if not isinstance(layer, torch.nn.GroupNorm)])
    conv_only(x)[0, 0, 7, 7].backward()                        # GroupNorm looks at the whole picture
    rows = x.grad[0].abs().sum(dim=(0, 2)).nonzero()
    assert rows.max() - rows.min() + 1 == 34


def test_the_perceptual_term(task, batch, monkeypatch):
    class Difference(torch.nn.Module):
        def forward(self, x, y):
            return (x - y).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(module, "load_lpips", lambda path: Difference())
    terms = losses(task(perceptual="lpips.safetensors", perceptual_weight=2.0), batch)
    assert terms["perceptual"].item() == pytest.approx(2 * terms["l1"].item(), rel=1e-5)


def test_the_exported_scale_brings_latents_to_unit_spread(task, recipe, pictures, tmp_path):
    made = task()
    made.export(tmp_path / "out")
    cfg, parts = store.load_modules(tmp_path / "out", ["vae"])
    assert cfg == replace(recipe.model, latent_scale=cfg.latent_scale)
    with torch.no_grad():
        latents = parts["vae"].encode(Pictures(pictures, DATA, 0, "holdout").batch([0, 1]).pixels).mean
    assert (cfg.latent_scale * latents).std().item() == pytest.approx(1, abs=0.01)


def test_psnr_in_closed_form():
    """Pictures span 2: an error of 0.2 everywhere is 20 dB; the mean is over pictures, not over errors."""
    x = torch.zeros(2, 3, 4, 4)
    off = x + torch.tensor([0.2, 0.02])[:, None, None, None]
    assert psnr(off, x) == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert math.isinf(psnr(x, x))
