"""The denoising objective against its closed forms."""

import math

import pytest
import torch

from minisd.samplers.denoiser import Conditioning, denoiser
from minisd.samplers.schedule import NoiseTable
from minisd.train.objective import Objective, error

TABLE = NoiseTable()
PREDICTIONS = ("epsilon", "v", "x0")


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 4, 3, 3, generator=generator)
    return x0, noise, torch.tensor([0, 10, 250, 700, 999])


def wide(values):
    return torch.as_tensor(values, dtype=torch.float32)[:, None, None, None]


def test_noised_latents_are_ddpms(sample):
    x0, noise, t = sample
    alpha_bar = torch.tensor(TABLE.alphas_cumprod)[t]
    expected = wide(alpha_bar.sqrt()) * x0 + wide((1 - alpha_bar).sqrt()) * noise
    torch.testing.assert_close(Objective(TABLE).question(x0, noise, t).x, expected, rtol=0, atol=1e-6)


def test_targets_are_the_noise_the_picture_or_the_velocity(sample):
    x0, noise, t = sample
    question = {kind: Objective(TABLE, kind).question(x0, noise, t) for kind in PREDICTIONS}
    assert question["epsilon"].target is noise and question["x0"].target is x0
    alpha_bar = torch.tensor(TABLE.alphas_cumprod)[t]
    a, b = wide(alpha_bar.sqrt()), wide((1 - alpha_bar).sqrt())
    v, x = question["v"].target, question["v"].x
    torch.testing.assert_close(v, a * noise - b * x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(a * x - b * v, x0, rtol=0, atol=1e-5)          # arXiv 2202.00512, appendix D
    torch.testing.assert_close(b * x + a * v, noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_says_the_target_is_understood_by_the_samplers(sample, prediction):
    x0, noise, t = sample
    question = Objective(TABLE, prediction).question(x0, noise, t)
    for n in range(len(t)):
        level = TABLE.at_t(float(t[n]))
        said = denoiser(lambda *_, n=n: question.target[n:n + 1], prediction)
        x = question.x[n:n + 1] * level.scale                                # the samplers' x = x0 + sigma * noise
        found = said(x, level, Conditioning(torch.zeros(1, 1, 1)))
        torch.testing.assert_close(found, x0[n:n + 1], rtol=0, atol=2e-5 * max(1, level.sigma))


def test_min_snr_weights_are_the_papers(sample):
    """arXiv 2303.09556, section 3.4: min(SNR, gamma) on x0's error, over SNR for epsilon's and over SNR + 1 for v's."""
    x0, noise, t = sample
    alpha_bar = TABLE.alphas_cumprod[t.numpy()]
    snr = torch.tensor(alpha_bar / (1 - alpha_bar), dtype=torch.float32)
    assert snr[0] > 5 > snr[-1]
    expected = {"x0": snr.clamp(max=5), "epsilon": snr.clamp(max=5) / snr, "v": snr.clamp(max=5) / (snr + 1)}
    for kind, weight in expected.items():
        torch.testing.assert_close(Objective(TABLE, kind, min_snr=5.0).question(x0, noise, t).weight, weight)
        assert (Objective(TABLE, kind).question(x0, noise, t).weight == 1).all()


def test_min_snr_means_the_same_for_every_prediction(sample):
    """The weighted error of a guess of x0 is one number, however the guess is written."""
    x0, noise, t = sample
    guess = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for kind in PREDICTIONS:
        x, _, target, weight = Objective(TABLE, kind, min_snr=5.0).question(x0, noise, t)
        alpha_bar = torch.tensor(TABLE.alphas_cumprod)[t]
        a, b = wide(alpha_bar.sqrt()), wide((1 - alpha_bar).sqrt())
        said_noise = (x - a * guess) / b
        said = {"x0": guess, "epsilon": said_noise, "v": a * said_noise - b * guess}[kind]
        found[kind] = error(said, target, weight).item()
    assert found["epsilon"] == pytest.approx(found["x0"], rel=1e-3)
    assert found["v"] == pytest.approx(found["x0"], rel=1e-3)


def test_shift_follows_its_equation():
    """arXiv 2403.03206, eq. 23, with sqrt(m / n) = shift."""
    u = torch.arange(0, 1, 1 / 512)
    for shift in (1.0, 2.0, 3.0):
        t = Objective(TABLE, shift=shift).timesteps(u)
        expected = [math.floor(1000 * shift * v / (1 + (shift - 1) * v)) for v in u.tolist()]
        assert max(abs(a - b) for a, b in zip(t.tolist(), expected, strict=True)) <= 1   # float32 against float64
    assert Objective(TABLE).timesteps(torch.tensor([0.0, 0.5, 1 - 2 ** -24])).tolist() == [0, 500, 999]
    assert Objective(TABLE, shift=3.0).timesteps(torch.tensor([1 - 2 ** -24])).tolist() == [999]


def test_timesteps_are_uniform_without_shift():
    counts = torch.bincount(Objective(TABLE).timesteps(torch.arange(0, 1, 1e-4)), minlength=1000)
    assert counts.min() >= 9 and counts.max() <= 11


def test_the_error_is_a_weighted_mean_in_float32():
    out, target = torch.full((2, 4, 8, 8), 300.0, dtype=torch.bfloat16), torch.zeros(2, 4, 8, 8)
    found = error(out, target, torch.tensor([1.0, 0.5]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(out[0, 0, 0, 0].item() ** 2 * 0.75)
