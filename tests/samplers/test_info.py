import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from minisd.errors import MinisdError
from minisd.samplers.info import SOURCES, adds_noise, sampler_info
from minisd.samplers.loop import sample
from minisd.samplers.recipes import METHODS, NAMES, SPACINGS, sampler
from minisd.samplers.schedule import Level, NoiseTable

TABLE = NoiseTable()


def test_needs_no_torch() -> None:
    code = ("import sys; from minisd.samplers.info import sampler_info, NoiseTable;"
            "print(sampler_info('ddim', 3, NoiseTable())); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_every_method_has_its_source_and_no_other() -> None:
    assert set(SOURCES) == {method.display for method in METHODS}
    for source in SOURCES.values():
        assert re.search(r"arXiv \d{4}\.\d{5}", source.paper) or "Adams" in source.paper


def test_what_it_says_of_ddim() -> None:
    """Three steps of Stable Diffusion's DDIM: timesteps 667, 334 and 1, then the first trained level."""
    assert sampler_info("ddim", 3, TABLE).splitlines() == [
        "DDIM, DDIM: 3 steps, 3 calls",
        "  paper    Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502",
        "  order    1",
        "  spacing  DDIM, from t = 667 of 999 to the first trained level",
        "  noise    none on the way",
        "  step       sigma         t",
        f"     1  {TABLE.sigmas[667]:10.4f}   667.000",
        f"     2  {TABLE.sigmas[334]:10.4f}   334.000",
        f"     3  {TABLE.sigmas[1]:10.4f}     1.000",
        f"   end  {TABLE.sigmas[0]:10.4f}     0.000"]


def test_what_adds_noise() -> None:
    quiet = {name for name in NAMES if not adds_noise(sampler(name))}
    assert {"euler", "heun", "ddim", "pndm", "dpm++2m", "unipc", "deis", "dpm fast", "dpm adaptive"} <= quiet
    assert not quiet & {"euler a", "dpm2 a", "ddpm", "dpm++2s a", "dpm++sde", "dpm++3m sde", "lcm"}
    assert adds_noise(sampler("ddim", eta=0.1)) and "a fresh draw per step" in sampler_info("euler a", 3, TABLE)
    assert "Brownian" in sampler_info("dpm++2m sde", 3, TABLE)


@pytest.mark.parametrize("name", [f"{name} {word}".strip() for name in NAMES for word in ("", *SPACINGS)])
def test_it_says_what_happens(name: str) -> None:
    """The calls that are made, and the levels that are visited, of any method on any spacing."""
    recipe, text = sampler(name), sampler_info(name, 7, TABLE)
    asked: list[Level] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return torch.full_like(x, 0.25)

    schedule = recipe.schedule(TABLE, 7)
    x = torch.full((1, 1, 1, 1), schedule[0].scale, dtype=torch.float64)
    sample(recipe.solver, denoise, x, schedule, TABLE, noise=lambda *_: torch.zeros_like(x))
    said = re.search(r": 7 steps, (at least )?(\d+) calls\n", text)
    assert said is not None
    assert len(asked) >= int(said[2]) if said[1] else len(asked) == int(said[2])
    rows = [line.split() for line in text.splitlines()[-8:]]
    assert [(float(sigma), float(t)) for _, sigma, t in rows] == [
        (pytest.approx(level.sigma, abs=1e-4), pytest.approx(level.t, abs=1e-3)) for level in schedule]


@pytest.mark.parametrize(("name", "steps"), [("ddpn", 5), ("ddim", 0), ("ddim", 1001)])
def test_what_there_is_not_is_a_usage_error(name: str, steps: int) -> None:
    with pytest.raises(MinisdError) as caught:
        sampler_info(name, steps, TABLE)
    assert caught.value.code == 2
