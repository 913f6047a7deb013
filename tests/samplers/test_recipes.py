import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisd.errors import MinisdError
from minisd.samplers.churn import Churn
from minisd.samplers.consistency import LCM, TCD
from minisd.samplers.loop import sample
from minisd.samplers.multistep import LMS, PLMS, DPMMultistep
from minisd.samplers.noise import NOISES
from minisd.samplers.onestep import DPM2, DPMpp2S, DPMppSDE, Euler, Heun
from minisd.samplers.recipes import METHODS, NAMES, SPACINGS, Recipe, sampler
from minisd.samplers.schedule import (
    CLEAN,
    Level,
    NoiseTable,
    exponential,
    karras,
    leading,
    linspace,
    linspace_rounded,
    sgm_uniform,
)
from minisd.samplers.singlestep import DPMSinglestep, thirds
from minisd.samplers.unipc import UniPC

TABLE = NoiseTable()
EVERY = [f"{name} {word}".strip() for name in NAMES for word in ("", *SPACINGS)]


def test_names_can_be_listed_without_torch() -> None:
    code = "import sys, minisd.samplers.recipes as r; r.sampler('ddim'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("spelling", ["dpm++2m karras", "DPM++ 2M Karras", "dpmpp_2m_karras", "dpm++-2m-karras",
                                      "DPM-Solver++ Karras", "  dpm++2M   KARRAS ", "k_dpmpp_2m_ka"])
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
                                                 karras, "clean"),
    ("DPM++ 2S a Karras", DPMpp2S(), karras, "clean"), ("k_dpm_2_a", DPM2(1.0), linspace, "clean"),
    ("dpm_2_ancestral", DPM2(1.0), linspace, "clean"), ("k_heun", Heun(), linspace, "clean"),
    ("LMS Karras", LMS(), karras, "clean"), ("DPM++ SDE Exponential", DPMppSDE(), exponential, "clean"),
    ("DPM fast", DPMSinglestep(3, "noise"), thirds, "first"), ("uni_pc_bh2", UniPC(2), linspace_rounded, "clean"),
    ("dpmpp_2s_ancestral", DPMpp2S(), linspace, "clean"), ("Euler SGM Uniform", Euler(), sgm_uniform, "clean"),
    ("euler_sgm", Euler(), sgm_uniform, "clean"), ("Euler a Automatic", Euler(1.0), linspace, "clean"),
    ("PLMS DDIM", PLMS(), leading, "first"), ("DPM++ 2M Uniform", DPMMultistep(2), linspace, "clean")])
def test_the_names_people_know(name: str, solver: object, spacing: object, last: str) -> None:
    recipe = sampler(name)
    assert (recipe.solver, recipe.spacing, recipe.last) == (solver, spacing, last)


def test_no_two_names_are_one() -> None:
    recipes = [sampler(name) for name in EVERY]
    assert [recipe.name for recipe in recipes] == EVERY
    assert len({method.display for method in METHODS}) == len(METHODS)


def test_no_spelling_has_two_meanings() -> None:
    """Each method's own names, and A1111's way to write a method and its schedule type, find that method."""
    for method in METHODS:
        for name in (*method.names, method.display):
            assert sampler(name).solver == method.solver and sampler(name).spacing == SPACINGS[method.spacing][0]
            for spacing, schedule_type in SPACINGS.values():
                recipe = sampler(f"{name} {schedule_type}")
                assert (recipe.solver, recipe.spacing) == (method.solver, spacing)


def test_every_sampler_of_a1111s_list_is_known() -> None:
    listed = ("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a",
              "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "DDIM", "PLMS", "UniPC", "LCM")
    assert set(listed) <= {method.display for method in METHODS}
    assert {"Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "Simple", "DDIM", "Beta"} <= {
        schedule_type for _, schedule_type in SPACINGS.values()}


def test_noise_is_one_path_where_a_step_asks_for_it_twice() -> None:
    brownian = {method.names[0] for method in METHODS if method.noise == "brownian"}
    assert brownian == {"dpm++sde", "dpm++2m sde", "dpm++2m sde heun", "dpm++3m sde"}
    assert set(NOISES) >= {method.noise for method in METHODS}


def test_eta_and_churn_replace_the_methods_own() -> None:
    assert sampler("ddim", eta=0.5).solver == Euler(eta=0.5)
    assert sampler("heun karras", churn=Churn(20.0)).solver == Heun(churn=Churn(20.0))
    assert sampler("euler", eta=0.3, churn=Churn(1.0)).solver == Euler(0.3, Churn(1.0))
    assert sampler("euler", eta=0.0).solver == Euler()


@pytest.mark.parametrize(("name", "options"), [("pndm", {"eta": 0.5}), ("dpm++2m", {"churn": Churn(1.0)})])
def test_a_method_without_the_option_names_those_that_have_it(name: str, options: dict[str, object]) -> None:
    with pytest.raises(MinisdError, match=f"sampler {re.escape(name)} has no") as caught:
        sampler(name, **options)
    assert caught.value.code == 2 and "euler" in caught.value.remedy


@pytest.mark.parametrize("name", EVERY)
def test_a_name_written_into_a_picture_reads_back(name: str) -> None:
    recipe = sampler(name)
    assert sampler(recipe.name) == recipe
    if name not in NAMES:
        assert sampler(recipe.display).solver == recipe.solver


@pytest.mark.parametrize("name", NAMES)
def test_every_method_walks_any_number_of_steps(name: str) -> None:
    for n in (1, 2, 3, 20, 1000):
        walk_whole(sampler(name), n)


def walk_whole(recipe: Recipe, n: int) -> None:
    """Levels fall, the end is as stated, the calls are as many as promised, the walk arrives at the picture."""
    schedule = recipe.schedule(TABLE, n)
    assert len(schedule) == n + 1 and all(a.sigma > b.sigma for a, b in pairwise(schedule))
    assert schedule[-1] == CLEAN or (recipe.last == "first" and schedule[-1] == TABLE.at_t(0))
    asked: list[Level] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return 0.25 + 0 * x

    start, left = schedule[0].scale, schedule[-1].sigma / schedule[0].sigma
    if recipe.solver in (LCM(), TCD()):             # which make their own noise of what they are given
        start = 0.25
    x = torch.tensor([start], dtype=torch.float64) if recipe.adaptive else start      # its error is a tensor's
    end = float(sample(recipe.solver, denoise, x, schedule, TABLE, noise=lambda *_: 0.0))
    promised = recipe.calls(TABLE, n)
    assert len(asked) == promised or (recipe.adaptive and len(asked) > promised), f"{recipe.name}: {n} steps"
    assert all(level.sigma > 0 for level in asked)
    assert end == pytest.approx(0.25 + left * (start - 0.25), abs=1e-6 if recipe.solver != LCM() else 1e-3)


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
