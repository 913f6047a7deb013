import dataclasses
import functools
import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from minisd.config import ModelConfig
from minisd.samplers.schedule import (
    CLEAN,
    Level,
    NoiseTable,
    Spacing,
    beta,
    beta_quantile,
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

TABLE = NoiseTable()
SPACINGS: dict[str, Spacing] = {
    "leading": leading,
    "leading, one spare": functools.partial(leading, spare=1),
    "linspace": linspace,
    "linspace rounded, none spare": functools.partial(linspace, rounded=True),
    "linspace_rounded": linspace_rounded,
    "trailing": trailing,
    "karras": karras,
    "karras rounded": functools.partial(karras, rounded=True),
    "exponential": exponential,
    "polyexponential, rho 1.5": functools.partial(polyexponential, rho=1.5),
    "polyexponential, rho 0.5": functools.partial(polyexponential, rho=0.5),
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "beta": beta,
    "beta of t": functools.partial(beta, of="t"),
}
ZERO_SNR = NoiseTable(zero_snr=True)


def test_needs_neither_torch_nor_much_else() -> None:
    code = "import sys, minisd.samplers.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------- the table
def test_stable_diffusion_s_ends() -> None:
    """The figures that every implementation of Stable Diffusion prints: sigma 0.0292 to 14.6146."""
    assert TABLE.sigmas[[0, -1]] == pytest.approx([0.02916715815, 14.61464122933], rel=1e-9)
    assert TABLE.alphas_cumprod[[0, -1]] == pytest.approx([0.99915, 0.0046600], rel=1e-4)
    assert len(TABLE.sigmas) == 1000 and TABLE.sigmas.dtype == np.float64


def test_a_table_is_a_value() -> None:
    assert hash(TABLE) == hash(NoiseTable()) and NoiseTable() == TABLE != NoiseTable(steps=500)
    assert NoiseTable(**json.loads(json.dumps(dataclasses.asdict(TABLE)))) == TABLE
    assert TABLE.sigmas is NoiseTable().sigmas, "computed once"
    with pytest.raises(ValueError, match="read-only"):
        TABLE.sigmas[0] = 1.0


@pytest.mark.parametrize("table", [TABLE, NoiseTable(betas="linear", beta_start=1e-4, beta_end=0.02),
                                   NoiseTable(betas="cosine"), NoiseTable(steps=7), NoiseTable(steps=1),
                                   ZERO_SNR, NoiseTable(betas="cosine", zero_snr=True),
                                   NoiseTable(steps=2, zero_snr=True)])
def test_sigmas_rise_and_agree_with_alphas(table: NoiseTable) -> None:
    assert (np.diff(table.sigmas) > 0).all() and np.isfinite(table.sigmas).all()
    np.testing.assert_allclose(table.alphas_cumprod, 1 / (1 + table.sigmas ** 2), rtol=1e-12)


def test_cosine_follows_its_formula() -> None:
    """Nichol and Dhariwal, eq. 17: alpha-bar is a squared cosine, but where beta is held at 0.999."""
    t = np.arange(1, 990) / 1000
    wanted = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(NoiseTable(betas="cosine").alphas_cumprod[:989], wanted, rtol=1e-9)


def test_levels_between_trained_ones() -> None:
    half = TABLE.at_t(10.5)
    assert half == Level(pytest.approx((TABLE.sigmas[10] + TABLE.sigmas[11]) / 2), 10.5)
    middle = float(np.sqrt(TABLE.sigmas[10] * TABLE.sigmas[11]))
    assert TABLE.at_sigma(middle) == Level(middle, pytest.approx(10.5))
    assert TABLE.at_sigma(0.0) == CLEAN
    for t in (0, 1, 500, 999):
        assert TABLE.at_sigma(TABLE.at_t(t).sigma).t == pytest.approx(t, abs=1e-9)
    for t in (0.0, 0.3, 500.7, 998.9, 999.0):
        level = TABLE.between(t)
        assert level.t == t and TABLE.at_sigma(level.sigma).t == pytest.approx(t, abs=1e-9)


def test_scale_is_the_way_to_the_variance_preserving_x() -> None:
    level = TABLE.at_t(999)
    assert 1 / level.scale ** 2 == pytest.approx(TABLE.alphas_cumprod[999], rel=1e-12)
    assert CLEAN.scale == 1


@pytest.mark.parametrize("wrong", [{"beta_start": 0.0}, {"beta_end": 1.0}, {"beta_start": 0.5, "beta_end": 0.1},
                                   {"steps": 0}, {"betas": "sigmoid"}, {"steps": 1, "zero_snr": True}])
def test_impossible_tables_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"need|one of"):
        NoiseTable(**wrong)


def test_zero_snr_leaves_no_picture_in_the_noisiest_level_and_the_first_as_it_was() -> None:
    """Lin et al., section 3.1: sqrt(alpha-bar) is shifted and stretched; Stable Diffusion's own ends at 0.068265."""
    plain, rescaled = np.sqrt(TABLE.alphas_cumprod), np.sqrt(ZERO_SNR.alphas_cumprod)
    assert plain[-1] == pytest.approx(0.068265, rel=1e-4)
    assert rescaled[-1] == 1 / 4096 and rescaled[0] == pytest.approx(plain[0], rel=1e-15)
    line = np.polynomial.Polynomial.fit(plain[:-1], rescaled[:-1], 1)
    np.testing.assert_allclose(line(plain[:-1]), rescaled[:-1], atol=1e-14)
    assert line(plain[-1]) == pytest.approx(0, abs=1e-14)
    assert ZERO_SNR.sigmas[-1] == pytest.approx(4096, rel=1e-6), "finite: solvers divide by it"


def test_zero_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts v or x0"):
        ModelConfig(noise=ZERO_SNR)
    assert ModelConfig(noise=ZERO_SNR, prediction="v").noise.zero_snr


# ---------------------------------------------------------------- spacings
@pytest.mark.parametrize("last", ["clean", "first"])
@pytest.mark.parametrize("name", SPACINGS)
def test_every_schedule_is_sound(name: str, last: str) -> None:
    """n + 1 levels that strictly fall, in range, the end as stated; for 1 to 100 steps and at the limit."""
    first = TABLE.at_t(0)
    for n in (*range(1, 101), 333, 499, 500, 501, 999, 1000):
        levels = SPACINGS[name](TABLE, n, last=last)
        sigmas = [level.sigma for level in levels]
        assert len(levels) == n + 1
        assert all(a > b for a, b in pairwise(sigmas)), f"{name}: {n} steps do not fall"
        assert all(0 <= level.t <= 999 for level in levels)
        assert all(type(level.sigma) is float and type(level.t) is float for level in levels)
        assert sigmas[0] <= TABLE.sigmas[-1] * (1 + 1e-12)
        if last == "clean" or sigmas[-2] <= first.sigma * (1 + 1e-9):
            assert levels[-1] == CLEAN
        else:
            assert levels[-1] == first


@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_takes_a_zero_snr_table(name: str) -> None:
    for n in (1, 2, 20, 1000):
        levels = SPACINGS[name](ZERO_SNR, n)
        assert len(levels) == n + 1 and all(a.sigma > b.sigma for a, b in pairwise(levels))
        assert all(math.isfinite(level.scale) for level in levels)


@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_takes_a_small_table(name: str) -> None:
    for steps in (1, 2, 7):
        for n in range(1, steps + 1):
            levels = SPACINGS[name](NoiseTable(steps=steps), n)
            assert len(levels) == n + 1 and all(a.sigma > b.sigma for a, b in pairwise(levels))


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("n", [0, -1, 1001])
def test_counts_out_of_range_are_refused(name: str, n: int) -> None:
    with pytest.raises(ValueError, match="need 1 to 1000"):
        SPACINGS[name](TABLE, n)


def test_timesteps_as_published() -> None:
    """Lin et al., arXiv 2305.08891, table 2, for 5 steps (leading with Stable Diffusion's offset of 1)."""
    def steps(spacing: Spacing) -> list[float]:
        return [level.t for level in spacing(TABLE, 5)[:-1]]

    assert steps(leading) == [801, 601, 401, 201, 1]
    assert steps(trailing) == [999, 799, 599, 399, 199]
    assert steps(functools.partial(linspace, rounded=True)) == [999, 749, 500, 250, 0]
    assert steps(linspace_rounded) == [999, 799, 599, 400, 200]
    assert steps(functools.partial(leading, spare=1)) == [831, 665, 499, 333, 167]


def test_a_single_step_begins_with_noise() -> None:
    """Whatever the spacing: a walk starts from pure noise, and from t = 1 it would end with it."""
    assert leading(TABLE, 1) == [TABLE.at_t(999), CLEAN] == trailing(TABLE, 1) == linspace(TABLE, 1)
    for name, spacing in SPACINGS.items():
        assert spacing(TABLE, 1)[0].t >= 500, name


def test_leading_keeps_inside_the_table() -> None:
    """An offset of 1 would ask for timestep 1000 when every level is walked: the references stop with an error."""
    assert [level.t for level in leading(TABLE, 1000)[:-1]] == list(range(999, -1, -1))
    assert [level.t for level in leading(TABLE, 999)[:2]] == [999, 998]


def test_karras_is_even_in_the_seventh_root() -> None:
    roots = np.array([level.sigma for level in karras(TABLE, 12)[:-1]]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-9)
    assert [level.t for level in karras(TABLE, 12, rounded=True)] == [
        round(level.t) for level in karras(TABLE, 12)]


def test_exponential_is_even_in_log_sigma() -> None:
    logs = np.log([level.sigma for level in exponential(TABLE, 12)[:-1]])
    np.testing.assert_allclose(np.diff(logs), np.diff(logs)[0], rtol=1e-9)
    assert polyexponential(TABLE, 12) == exponential(TABLE, 12)


def test_polyexponential_is_even_in_a_root_of_log_sigma() -> None:
    low, high = np.log(TABLE.sigmas[[0, -1]])
    logs = np.log([level.sigma for level in polyexponential(TABLE, 12, rho=3.0)[:-1]])
    np.testing.assert_allclose(((logs - low) / (high - low)).clip(0) ** (1 / 3), np.linspace(1, 0, 12), atol=1e-5)


def test_levels_that_fall_together_are_refused() -> None:
    """(1 / 999)^9 of the way above the last level is the last level, in float64."""
    with pytest.raises(ValueError, match="nearer to 1"):
        polyexponential(TABLE, 1000, rho=9.0)
    with pytest.raises(ValueError, match="need more than 0"):
        polyexponential(TABLE, 10, rho=0.0)


def test_simple_and_sgm_uniform_as_defined() -> None:
    assert [level.t for level in simple(TABLE, 3)] == [999, 666, 333, 0]
    assert simple(TABLE, 3)[:-1] == [TABLE.at_t(t) for t in (999, 666, 333)]
    assert [level.t for level in sgm_uniform(TABLE, 3)[:-1]] == [999, 666, 333]
    assert sgm_uniform(TABLE, 6)[1] == TABLE.between(832.5)


# ---------------------------------------------------------------- the Beta distribution
def test_beta_quantiles_that_have_a_closed_form() -> None:
    """Uniform; the arcsine distribution; P(X <= x) = x^a for b = 1, and mirrored."""
    p = np.linspace(0, 1, 101)
    np.testing.assert_allclose(beta_quantile(p, 1.0, 1.0), p, atol=1e-15)
    np.testing.assert_allclose(beta_quantile(p, 0.5, 0.5), np.sin(np.pi * p / 2) ** 2, atol=1e-14)
    np.testing.assert_allclose(beta_quantile(p, 0.3, 1.0), p ** (1 / 0.3), atol=1e-14)
    np.testing.assert_allclose(beta_quantile(p, 1.0, 0.7), 1 - (1 - p) ** (1 / 0.7), atol=1e-14)


def test_beta_quantiles_invert_the_integral_of_the_density() -> None:
    """With x = u^(1 / 0.6) the density's pole at 0 is gone: the trapezoidal rule is enough up to the median."""
    for x in (1e-4, 0.02, 0.3, 0.5):
        u = np.linspace(0, x ** 0.6, 20_001)
        norm = math.gamma(0.6) ** 2 / math.gamma(1.2)
        p = np.trapezoid((1 - u ** (1 / 0.6)) ** -0.4, u) / 0.6 / norm
        assert beta_quantile(np.array([p, 1 - p]), 0.6, 0.6) == pytest.approx([x, 1 - x], abs=1e-8)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.6), (0.6, 1.5), (-1.0, 1.0)])
def test_other_beta_distributions_are_refused(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="0 < a, b <= 1"):
        beta(TABLE, 10, a=a, b=b)
