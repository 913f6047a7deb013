import math

import pytest

from minisd.samplers.consistency import LCM, TCD, distilled
from minisd.samplers.loop import sample
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, karras, trailing

TABLE = NoiseTable()


def test_lcm_jumps_to_the_picture_and_back_up() -> None:
    """In DDPM's own scale, which algorithm 3 is written in: sqrt(alpha) x0 + sqrt(1 - alpha) noise."""
    now, later, picture, noise = TABLE.at_t(499), TABLE.at_t(259), -0.4, 1.3
    seen: list[float] = []
    got = sample(LCM(), lambda x, level: picture, 3.0, [now, later, CLEAN], TABLE, noise=lambda *_: noise,
                 on_step=lambda x, s: seen.append(x) or x)
    alpha = TABLE.alphas_cumprod[259]
    assert seen[0] / later.scale == pytest.approx(math.sqrt(alpha) * picture + math.sqrt(1 - alpha) * noise, rel=1e-6)
    assert got == pytest.approx(picture, rel=1e-6)


def test_lcm_at_timestep_0_is_x_itself() -> None:
    """The boundary condition of a consistency function (eq. 5): there, whatever the network says."""
    now = TABLE.at_t(0)
    assert sample(LCM(), lambda x, level: 99.0, 0.5, [now, CLEAN], TABLE, noise=None) == 0.5 / now.scale


@pytest.mark.parametrize("last", ["clean", "first"])
def test_lcm_ends_on_the_level_it_is_given(last: str) -> None:
    schedule = distilled(TABLE, 4, last=last)
    end = sample(LCM(), lambda x, level: 0.25, 1.0, schedule, TABLE, noise=lambda *_: 1.0)
    assert end == pytest.approx(0.25 + schedule[-1].sigma, rel=1e-6)


def test_tcd_without_gamma_is_ddim() -> None:
    for schedule in (distilled(TABLE, 6, last="first"), karras(TABLE, 6)):
        ends = [sample(solver, lambda x, level: math.tanh(x + level.sigma), 9.0, schedule, TABLE, noise=None)
                for solver in (TCD(gamma=0.0), Euler())]
        assert ends[0] == ends[1]


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_tcd_goes_below_and_back_up(gamma: float) -> None:
    """A network that knows the picture: x at `next` has the noise it had, less, and fresh noise, of the right size."""
    now, later, picture, fresh = TABLE.at_t(699), TABLE.at_t(499), 0.7, 1.3
    seen: list[float] = []
    got = sample(TCD(gamma), lambda x, level: picture, picture - 1.1 * now.sigma, [now, later, CLEAN], TABLE,
                 noise=lambda *_: fresh, on_step=lambda x, s: seen.append(x) or x)
    below = TABLE.at_t(math.floor((1 - gamma) * 499)).sigma
    assert seen[0] == pytest.approx(picture - 1.1 * below + fresh * math.sqrt(later.sigma ** 2 - below ** 2))
    assert got == pytest.approx(picture, rel=1e-12)


@pytest.mark.parametrize("spacing", [karras, trailing, distilled])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_tcd_never_passes_the_level_it_goes_to(spacing: object, n: int) -> None:
    """Fractional and rounded timesteps too: a level whose timestep is rounded up must stay above where it goes."""
    schedule = [Level(level.sigma, float(round(level.t))) for level in spacing(TABLE, n)]
    for gamma in (0.0, 1e-6, 0.3, 1.0):
        end = sample(TCD(gamma), lambda x, level: 0.25, 9.0, schedule, TABLE, noise=lambda *_: 0.5)
        assert end == pytest.approx(0.25)


# ---------------------------------------------------------------- the spacing
def test_distilled_timesteps() -> None:
    """The four steps that LCM's users know, and all fifty that it was distilled on."""
    assert [level.t for level in distilled(TABLE, 4)] == [999, 759, 499, 259, 0]
    assert distilled(TABLE, 50) == trailing(TABLE, 50) and distilled(TABLE, 50)[-2].t == 19
    assert distilled(TABLE, 1) == [TABLE.at_t(999), CLEAN]
    assert distilled(TABLE, 4, last="first")[-1] == TABLE.at_t(0)


def test_more_steps_than_it_was_distilled_on_count_down_evenly() -> None:
    for n in (51, 250, 1000):
        assert distilled(TABLE, n) == trailing(TABLE, n)


def test_of_a_short_table_no_level_is_used_twice() -> None:
    short = NoiseTable(steps=10)
    assert [level.t for level in distilled(short, 5)[:-1]] == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("solver", [LCM(), TCD()])
@pytest.mark.parametrize("first", range(4))
def test_a_walk_may_begin_anywhere(solver: LCM | TCD, first: int) -> None:
    schedule, asked = distilled(TABLE, 4), []
    end = sample(solver, lambda x, level: asked.append(level) or 0.25, 0.25 + schedule[first].sigma, schedule, TABLE,
                 noise=lambda *_: 0.3, first=first)
    assert end == pytest.approx(0.25, rel=1e-6) and asked == schedule[first:-1]
    assert len(asked) == solver.calls(schedule[first:])
