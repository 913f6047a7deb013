import subprocess
import sys
from itertools import pairwise

import pytest

from minisd.errors import MinisdError
from minisd.samplers.loop import sample
from minisd.samplers.multistep import PLMS, DPMMultistep
from minisd.samplers.onestep import Euler
from minisd.samplers.recipes import METHODS, NAMES, SPACINGS, sampler
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, karras, leading, linspace

TABLE = NoiseTable()
EVERY = [f"{name} {word}".strip() for name in NAMES for word in ("", *SPACINGS)]


def test_names_can_be_listed_without_torch() -> None:
    code = "import sys, minisd.samplers.recipes as r; r.sampler('ddim'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("spelling", ["dpm++2m karras", "DPM++ 2M Karras", "dpmpp_2m_karras", "dpm++-2m-karras",
                                      "DPM-Solver++ Karras", "  dpm++2M   KARRAS "])
def test_spellings(spelling: str) -> None:
    recipe = sampler(spelling)
    assert recipe is not None and recipe.name == "dpm++2m karras"
    assert (recipe.display, recipe.schedule_type) == ("DPM++ 2M", "Karras")
    assert recipe.solver == DPMMultistep(2) and recipe.spacing is karras


@pytest.mark.parametrize(("name", "solver", "spacing", "last"), [
    ("euler", Euler(), linspace, "clean"), ("Euler a", Euler(1.0), linspace, "clean"),
    ("euler_ancestral", Euler(1.0), linspace, "clean"), ("DDIM", Euler(), leading, "first"),
    ("ddpm", Euler(1.0), leading, "clean"), ("PLMS", PLMS(), leading, "first"), ("pndm", PLMS(), leading, "first"),
    ("euler karras", Euler(), karras, "clean"), ("DPM++ 2M SDE Heun Karras", DPMMultistep(2, eta=1.0, slope="heun"),
                                                 karras, "clean")])
def test_the_names_people_know(name: str, solver: object, spacing: object, last: str) -> None:
    recipe = sampler(name)
    assert (recipe.solver, recipe.spacing, recipe.last) == (solver, spacing, last)


def test_no_two_names_are_one() -> None:
    recipes = [sampler(name) for name in EVERY]
    assert [recipe.name for recipe in recipes] == EVERY
    assert len({method.display for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize("name", EVERY)
def test_a_name_written_into_a_picture_reads_back(name: str) -> None:
    recipe = sampler(name)
    assert sampler(recipe.name) == recipe
    if name not in NAMES:
        assert sampler(recipe.display).solver == recipe.solver


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_walks_any_number_of_steps(name: str) -> None:
    """Levels fall, the end is as stated, the calls are as many as promised, the walk arrives at the picture."""
    recipe, first = sampler(name), TABLE.at_t(0)
    for n in (*range(1, 22), 50, 100, 500, 999, 1000):
        schedule = recipe.schedule(TABLE, n)
        assert len(schedule) == n + 1 and all(a.sigma > b.sigma for a, b in pairwise(schedule))
        assert schedule[-1] == CLEAN or (recipe.last == "first" and schedule[-1] == first)
        asked: list[Level] = []

        def denoise(x: float, level: Level, asked: list[Level] = asked) -> float:
            asked.append(level)
            return 0.25

        start, left = schedule[0].scale, schedule[-1].sigma / schedule[0].sigma
        end = sample(recipe.solver, denoise, start, schedule, TABLE, noise=lambda *_: 0.0)
        assert len(asked) == recipe.calls(TABLE, n), f"{name}: {n} steps"
        assert all(level.sigma > 0 for level in asked)
        assert end == pytest.approx(0.25 + left * (start - 0.25), abs=1e-9)


def test_pndm_says_that_it_asks_once_more() -> None:
    assert [sampler("pndm").calls(TABLE, n) for n in (1, 2, 20)] == [1, 3, 21]
    assert sampler("dpm++2m").calls(TABLE, 20) == 20


@pytest.mark.parametrize("n", [0, -3, 1001])
def test_impossible_counts_are_a_usage_error(n: int) -> None:
    with pytest.raises(MinisdError, match="1 to 1000") as caught:
        sampler("ddim").schedule(TABLE, n)
    assert caught.value.code == 2


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(MinisdError) as caught:
        sampler("DPM++ 2N Karras")
    error = caught.value
    assert error.code == 2 and "DPM++ 2N Karras" in error.what and "dpm++2m karras" in error.why
    assert "euler a" in error.remedy and len(str(error).splitlines()) <= 6


@pytest.mark.parametrize("name", ["", "karras", "qqqqqq", "euler karras karras"])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(MinisdError, match="no sampler is called"):
        sampler(name)
