"""Whole walks beside k-diffusion's, recorded: tests/goldens/make_k_diffusion.py says how.

All is in float64, k-diffusion's tables too, so nothing but rounding may differ.
"""
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from comparison import assert_close
from safetensors import safe_open
from torch import Tensor
from toy import noise_list, toy_unet

from minisd.samplers.adaptive import DPMAdaptive
from minisd.samplers.churn import Churn
from minisd.samplers.denoiser import Conditioning, conditioned, denoiser
from minisd.samplers.loop import Solver, sample
from minisd.samplers.multistep import LMS, DPMMultistep
from minisd.samplers.onestep import DPM2, DPMpp2S, DPMppSDE, Euler, Heun
from minisd.samplers.schedule import Level, NoiseTable, exponential, karras
from minisd.samplers.singlestep import DPMSinglestep, thirds

TABLE, SHAPE, WITHIN = NoiseTable(), (1, 4, 3, 3), 1e-9
GOLDEN = Path(__file__).parent.parent / "goldens" / "k_diffusion.safetensors"
CHURN = Churn(4.0, 0.1, 10.0, 1.003)
SOLVERS: dict[str, Solver] = {
    "euler": Euler(), "euler churn": Euler(churn=CHURN), "euler a": Euler(eta=1.0), "euler a eta 0.5": Euler(eta=0.5),
    "heun": Heun(), "heun churn": Heun(churn=CHURN), "dpm2": DPM2(), "dpm2 churn": DPM2(churn=CHURN),
    "dpm2 a": DPM2(eta=1.0), "lms": LMS(), "dpm++2s a": DPMpp2S(), "dpm++sde": DPMppSDE(),
    "dpm++sde at a third": DPMppSDE(r=1 / 3), "dpm++2m": DPMMultistep(2, settle=False),
    "dpm++2m sde": DPMMultistep(2, eta=1.0, settle=False),
    "dpm++2m sde heun": DPMMultistep(2, eta=1.0, slope="heun", settle=False),
    "dpm++3m sde": DPMMultistep(3, eta=1.0, slope="heun", settle=False),
    "dpm++3m sde eta 0.5": DPMMultistep(3, eta=0.5, slope="heun", settle=False),
}


def walks() -> Iterator[tuple[str, Solver, list[Level]]]:
    for name, solver in SOLVERS.items():
        yield f"{name}, karras", solver, karras(TABLE, 12)
        yield f"{name}, exponential", solver, exponential(TABLE, 7)
    for n in (5, 6, 7, 12):
        yield f"dpm fast {n}", DPMSinglestep(3, "noise"), thirds(TABLE, n, last="first")
    for order in (2, 3):
        yield f"dpm adaptive {order}", DPMAdaptive(order, first_step=0.05), [TABLE.at_t(999), TABLE.at_t(0)]


WALKS = {f"{name}, {prediction}": (solver, schedule) for name, solver, schedule in walks()
         for prediction in ("epsilon", "v")}


@pytest.mark.parametrize("name", WALKS)
def test_a_whole_walk_ends_where_that_of_k_diffusion_does(name: str) -> None:
    assert walk_difference(name) <= WITHIN


def walk_difference(name: str) -> float:
    """Relative difference of the ends; fails where it is beyond the bar, or the network is not asked as often."""
    solver, schedule = WALKS[name]
    with safe_open(GOLDEN, "pt") as golden:
        wanted, calls = golden.get_tensor(name), json.loads(golden.metadata()["calls"])[name]
    first, *rest = noise_list(100, SHAPE)
    asked: list[Level] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return network(x, level)

    network = conditioned(denoiser(toy_unet(), name.split(", ")[-1]),
                          Conditioning(torch.zeros(1, 1, 1, dtype=torch.float64)))
    end = sample(solver, denoise, first * schedule[0].sigma, schedule, TABLE, noise=noise_of(name, schedule, rest))
    # Where a step is refused, ours keeps the answer at its beginning, and k-diffusion asks again.
    assert len(asked) == calls or ("adaptive" in name and solver.calls(schedule) < len(asked) < calls)
    return assert_close(name, end, wanted, WITHIN)


def noise_of(name: str, schedule: list[Level], noises: list[Tensor]) -> Callable[[Level, Level], Tensor]:
    """The next of the list; with churn the step's own, since k-diffusion draws it whether it is used or not."""
    if "churn" in name:
        return lambda now, _: noises[schedule.index(now)]
    fresh = iter(noises)
    return lambda *_: next(fresh)


def recorded_in() -> dict[str, str]:
    """Versions of what made the recording."""
    with safe_open(GOLDEN, "pt") as golden:
        return json.loads(golden.metadata()["versions"])


def test_every_recorded_walk_is_compared() -> None:
    with safe_open(GOLDEN, "pt") as golden:
        assert set(golden.keys()) == set(WALKS)
    assert set(recorded_in()) == {"k-diffusion", "torch"}
