import dataclasses
import functools
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from minisd.samplers.schedule import (
    CLEAN,
    Level,
    NoiseTable,
    Spacing,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
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
}


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
                                   NoiseTable(betas="cosine"), NoiseTable(steps=7), NoiseTable(steps=1)])
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


def test_scale_is_the_way_to_the_variance_preserving_x() -> None:
    level = TABLE.at_t(999)
    assert 1 / level.scale ** 2 == pytest.approx(TABLE.alphas_cumprod[999], rel=1e-12)
    assert CLEAN.scale == 1


@pytest.mark.parametrize("wrong", [{"beta_start": 0.0}, {"beta_end": 1.0}, {"beta_start": 0.5, "beta_end": 0.1},
                                   {"steps": 0}, {"betas": "sigmoid"}])
def test_impossible_tables_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"need|one of"):
        NoiseTable(**wrong)


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
