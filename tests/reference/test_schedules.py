"""Every spacing and noise table beside diffusers, and beside the definitions that A1111's and ComfyUI's users know."""
import functools
import math

import numpy as np
import pytest
import torch
from reference.schedulers import (
    DDIM,
    DDPM,
    DPM,
    EULER,
    LEADING,
    LINSPACE,
    NO_CLIP,
    TABLE,
    TRAILING,
    module_of,
    scheduler_of,
    widen,
)
from torch import Tensor

from minisd.samplers.denoiser import Conditioning, conditioned, denoiser
from minisd.samplers.loop import Interval, sample
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import (
    NoiseTable,
    Spacing,
    beta,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
    polyexponential,
    sgm_uniform,
    simple,
    trailing,
)

pytestmark = pytest.mark.parity
pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")

ZERO_SNR = NoiseTable(zero_snr=True)
COUNTS = (2, 3, 4, 5, 7, 8, 10, 15, 20, 25, 30, 33, 40, 50, 64, 100, 150, 250, 333, 500, 998, 999, 1000)


# ---------------------------------------------------------------- tables
@pytest.mark.parametrize(("table", "config"), [
    (TABLE, {"beta_schedule": "scaled_linear"}),
    (NoiseTable(1e-4, 0.02, betas="linear"), {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}),
    (NoiseTable(betas="cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
    (ZERO_SNR, {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}),
    (NoiseTable(1e-4, 0.02, betas="linear", zero_snr=True),
     {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "rescale_betas_zero_snr": True}),
    (NoiseTable(betas="cosine", zero_snr=True), {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}),
], ids=["scaled_linear", "linear", "cosine", "scaled_linear zero-SNR", "linear zero-SNR", "cosine zero-SNR"])
@pytest.mark.parametrize("reference", [DDPM, EULER])
def test_tables(reference: str, table: NoiseTable, config: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """DDPM keeps an alpha-bar of 0 in the noisiest level, where Euler and ours have 2^-24."""
    widen(reference, monkeypatch)
    config = {"beta_start": 0.00085, "beta_end": 0.012, **config}
    scheduler = getattr(module_of(reference), reference.split(":")[1])(num_train_timesteps=1000, **config)
    np.testing.assert_allclose(table.alphas_cumprod[:-1], scheduler.alphas_cumprod.numpy()[:-1], rtol=1e-8)
    assert table.alphas_cumprod[-1] == pytest.approx(float(scheduler.alphas_cumprod[-1]), rel=1e-9, abs=2.0 ** -24)


# ---------------------------------------------------------------- spacings in diffusers
round_linspace = functools.partial(linspace, rounded=True)


@pytest.mark.parametrize(("reference", "config", "spacing"), [
    (DDIM, {**LEADING, **NO_CLIP}, leading), (DDIM, {**TRAILING, **NO_CLIP}, trailing),
    (DDIM, {**LINSPACE, **NO_CLIP}, round_linspace), (DPM, LINSPACE, linspace_rounded),
    (DPM, LEADING, functools.partial(leading, spare=1)), (DPM, TRAILING, trailing)],
    ids=["leading", "trailing", "linspace rounded", "dpm linspace", "dpm leading", "dpm trailing"])
def test_whole_timesteps(reference: str, config: dict[str, object], spacing: Spacing) -> None:
    """Counts from 2 to 998: nothing is near, every timestep is that of the reference."""
    scheduler, compared = scheduler_of(reference, **config), 0
    for n in (*range(2, 101), *range(102, 999, 8)):
        scheduler.set_timesteps(n)
        told = scheduler.timesteps.tolist()
        if len(told) != n or len(set(told)) != n:       # a step too many (test_sampler_faults), or one taken twice
            continue
        compared += 1
        assert [level.t for level in spacing(TABLE, n)[:-1]] == told, f"{n} steps"
    assert compared >= 204, "of 212"


@pytest.mark.parametrize("table", [TABLE, ZERO_SNR], ids=["sd1.5", "zero-SNR"])
@pytest.mark.parametrize(("config", "spacing"), [
    (LINSPACE, linspace), ({**LINSPACE, "use_karras_sigmas": True}, karras),
    ({**LINSPACE, "use_exponential_sigmas": True}, exponential), ({**LINSPACE, "use_beta_sigmas": True}, beta)],
    ids=["linspace", "karras", "exponential", "beta"])
def test_sigmas(config: dict[str, object], spacing: Spacing, table: NoiseTable,
                monkeypatch: pytest.MonkeyPatch) -> None:
    widen(EULER, monkeypatch)
    scheduler = scheduler_of(EULER, rescale_betas_zero_snr=table.zero_snr, **config)
    for n in COUNTS:
        scheduler.set_timesteps(n)
        levels = spacing(table, n)
        np.testing.assert_allclose([level.sigma for level in levels], scheduler.sigmas.numpy(), rtol=1e-7, atol=1e-12,
                                   err_msg=f"{n} steps")
        np.testing.assert_allclose([level.t for level in levels[:-1]], scheduler.timesteps.numpy(), atol=1e-5,
                                   err_msg=f"{n} steps")


def test_one_leading_step_of_diffusers_begins_at_the_clean_end() -> None:
    """It hands pure noise to the network as a picture that is done but for t = 1, and gets the noise back."""
    scheduler = scheduler_of(DDIM, **LEADING, **NO_CLIP, set_alpha_to_one=False)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [1]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = scheduler.step(torch.zeros_like(noise), scheduler.timesteps[0], noise).prev_sample
    assert float((drawn - noise).abs().max()) < 0.01
    assert leading(TABLE, 1)[0] == TABLE.at_t(999)


# ---------------------------------------------------------------- spacings in A1111 and ComfyUI, by their definitions
LOG_SIGMAS = torch.from_numpy(TABLE.sigmas.copy()).log()


def sigma_of(t: float) -> float:
    """k-diffusion's way from a fractional timestep to sigma: log sigma interpolated between two trained ones."""
    low, high = math.floor(t), math.ceil(t)
    return float(torch.lerp(LOG_SIGMAS[low], LOG_SIGMAS[high], t - low).exp())


@pytest.mark.parametrize("n", [1, *COUNTS])
def test_sgm_uniform_drops_the_last_of_one_point_more(n: int) -> None:
    wanted = [sigma_of(t) for t in torch.linspace(999, 0, n + 1, dtype=torch.float64)[:-1].tolist()]
    assert [level.sigma for level in sgm_uniform(TABLE, n)] == pytest.approx([*wanted, 0.0], rel=1e-9)


@pytest.mark.parametrize("n", [1, *COUNTS])
def test_simple_counts_trained_levels_from_the_end(n: int) -> None:
    wanted = [TABLE.sigmas[-1 - int(i * (1000 / n))] for i in range(n)]
    assert [level.sigma for level in simple(TABLE, n)] == pytest.approx([*wanted, 0.0], rel=1e-12)


@pytest.mark.parametrize("n", [1, *COUNTS])
@pytest.mark.parametrize("rho", [1.0, 0.7, 1.3])
def test_polyexponential_raises_the_ramp_to_a_power(n: int, rho: float) -> None:
    low, high = math.log(TABLE.sigmas[0]), math.log(TABLE.sigmas[-1])
    ramp = torch.linspace(1, 0, n, dtype=torch.float64) ** rho
    wanted = (ramp * (high - low) + low).exp().tolist()
    assert [level.sigma for level in polyexponential(TABLE, n, rho=rho)] == pytest.approx([*wanted, 0.0], rel=1e-9)


@pytest.mark.parametrize("n", [1, *COUNTS])
def test_beta_of_t_is_that_of_comfyui_before_it_rounds(n: int) -> None:
    """scipy's quantiles; where all rounded timesteps differ, ComfyUI walks to exactly these."""
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-image, in the extra `dev`")
    share = stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6)
    assert [level.t for level in beta(TABLE, n, of="t")[:-1]] == pytest.approx((share * 999).tolist(), abs=1e-9)


# ---------------------------------------------------------------- zero terminal SNR, walked
def toy(x: Tensor, t: Tensor, *_: object) -> Tensor:
    """A network's v: not linear, different at every timestep."""
    return torch.tanh(1.3 * x + torch.sin(t.to(torch.float64) / 150).view(-1, 1, 1, 1)) - 0.3 * x


def zero_snr_walks(reference: str, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """x / scale after every step, theirs and ours, from the same noise, on trailing spacing."""
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = NO_CLIP if reference == DDIM else {}
    scheduler = scheduler_of(reference, "v", rescale_betas_zero_snr=True, **TRAILING, **options)
    scheduler.set_timesteps(n)
    sigmas = scheduler.sigmas.tolist() if reference == EULER else [0.0] * (n + 1)
    x, theirs = noise * math.sqrt(1 + sigmas[0] ** 2), []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(toy(scheduler.scale_model_input(x, t), t.expand(2)), t, x).prev_sample
        theirs.append(x / math.sqrt(1 + sigmas[i + 1] ** 2))
    ours: list[Tensor] = []

    def keep(x: Tensor, s: Interval) -> Tensor:
        ours.append(x / s.next.scale)
        return x

    schedule = trailing(ZERO_SNR, n)
    condition = Conditioning(torch.zeros(2, 1, 1, dtype=torch.float64))
    sample(Euler(), conditioned(denoiser(toy, "v"), condition), schedule[0].scale * noise, schedule, ZERO_SNR,
           noise=lambda *_: noise, on_step=keep)
    return ours, theirs


@pytest.mark.parametrize(("reference", "within"), [(EULER, 1e-9), (DDIM, 1e-3)], ids=["euler", "ddim"])
@pytest.mark.parametrize("n", [1, 5, 20, 50])
def test_zero_snr_walks(reference: str, within: float, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Euler of diffusers begins at sigma 4096 as ours does. Its DDIM divides the infinite sigma out: what is left of
    the picture in ours at the start, 1/4096, is all that tells the two apart."""
    widen(reference, monkeypatch)
    ours, theirs = zero_snr_walks(reference, n)
    assert len(ours) == len(theirs) == n
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).abs().max()) < within * float(other.abs().max())
