"""What holds for every method on every spacing, whatever the tables of `recipes` come to list.

Solvers are plain arithmetic, so most walks here are over Python floats; the adaptive ones need tensors.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisd.samplers.loop import Interval, sample
from minisd.samplers.noise import NOISES
from minisd.samplers.recipes import METHODS, SPACINGS, Recipe, sampler
from minisd.samplers.schedule import CLEAN, Level, NoiseTable

TABLE, ZERO_SNR = NoiseTable(), NoiseTable(zero_snr=True)
EVERY = [f"{method.names[0]} {word}" for method in METHODS for word in SPACINGS]
FIXED = [method.names[0] for method in METHODS if not method.adaptive]
PICTURE = 0.25                                    # what the toy network always sees
SLACK = {"LCM": 0.05}                             # at timestep 0, where some spacings end, it keeps x: sigma is 0.03


@dataclass
class Record:
    """Where the network was asked, interval by interval, and where the walk ended."""
    asked: list[list[Level]]
    end: float


def walk(recipe: Recipe, schedule: Sequence[Level], table: NoiseTable, first: int = 0) -> Record:
    """From noise to the picture, with some noise where the method adds any."""
    record = Record([[]], 0.0)

    def denoise(x: float, level: Level) -> float:
        record.asked[-1].append(level)
        return x * 0.0 + PICTURE

    def step_done(x: float, s: Interval) -> float:
        record.asked.append([])
        return x

    start = PICTURE - 1.3 * schedule[first].sigma
    x = torch.full((1, 1, 1, 1), start, dtype=torch.float64) if recipe.adaptive else start
    record.end = float(sample(recipe.solver, denoise, x, schedule, table, noise=lambda *_: x * 0.0 + 0.7,
                              first=first, on_step=step_done))
    record.asked.pop()
    return record


def check_walk(recipe: Recipe, n: int, table: NoiseTable = TABLE, first: int = 0) -> None:
    """All that must be so of one walk."""
    what = f"{recipe.name}, {n} steps from {first}"
    schedule = recipe.schedule(table, n)
    assert len(schedule) == n + 1 and all(a.sigma > b.sigma for a, b in pairwise(schedule)), what
    assert schedule[-1] == CLEAN or (recipe.last == "first" and schedule[-1] == table.at_t(0)), what
    record = walk(recipe, schedule, table, first)
    assert math.isfinite(record.end), what
    if schedule[-1] == CLEAN:
        assert record.end == pytest.approx(PICTURE, abs=SLACK.get(recipe.display, 1e-9)), what
    calls = sum(map(len, record.asked))
    assert calls >= 1 and all(level.sigma > 0 for asked in record.asked for level in asked), what
    if recipe.adaptive:
        return
    assert calls == recipe.solver.calls(schedule[first:]), what
    assert calls == recipe.calls(table, n) or first, what
    assert len(record.asked) == n - first and all(record.asked), f"{what}: an interval asks nothing"
    for asked, now in zip(record.asked, schedule[first:], strict=False):
        assert asked[0] == now, f"{what}: an interval must begin where the last one ended"
        assert all(level.sigma < now.sigma for level in asked[1:]), f"{what}: the same level asked twice"


# ---------------------------------------------------------------- every method on every spacing
@pytest.mark.parametrize("name", EVERY)
def test_walks_of_up_to_20_steps(name: str) -> None:
    recipe = sampler(name)
    for n in range(1, 4 if recipe.adaptive else 21):
        check_walk(recipe, n)
    check_walk(recipe, 21 + EVERY.index(name) * 7 % 80)       # all numbers up to 100 have their turn


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVERY if not sampler(name).adaptive])
def test_walks_of_up_to_100_steps(name: str) -> None:
    recipe = sampler(name)
    for n in range(1, 101):
        check_walk(recipe, n)


@pytest.mark.parametrize("name", [f"{method.names[0]} {method.spacing}" for method in METHODS])
def test_walks_of_very_many_steps(name: str) -> None:
    for n in (500, 501, 1000):                    # 2, 0 and 1 left over of groups of three
        check_walk(sampler(name), n)


@pytest.mark.parametrize("name", EVERY)
def test_a_walk_may_begin_at_any_level(name: str) -> None:
    recipe = sampler(name)
    for n in ((2,) if recipe.adaptive else (1, 2, 5, 8)):
        for first in range(n):
            check_walk(recipe, n, first=first)


@pytest.mark.parametrize("name", EVERY)
def test_walks_on_a_zero_snr_table(name: str) -> None:
    recipe = sampler(name)
    for n in ((2,) if recipe.adaptive else (1, 2, 7, 20)):
        check_walk(recipe, n, ZERO_SNR)


# ---------------------------------------------------------------- tensors
def draw(name: str, seeds: Sequence[int], n: int = 6) -> Tensor:
    """Tiny latents walked down by a network that is not linear, with the noise that the recipe asks for."""
    recipe, shape = sampler(name), (2, 3, 3)
    noise = NOISES[recipe.noise](seeds, shape)
    schedule = recipe.schedule(TABLE, n)
    return sample(recipe.solver, lambda x, level: torch.tanh(x / level.scale), schedule[0].scale * noise.draw(),
                  schedule, TABLE, noise=noise)


@pytest.mark.parametrize("name", FIXED)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    """Equal bits alone and in any place among others. Adaptive methods take their steps for a batch as a whole:
    they are drawn one at a time."""
    seeds = (7, 2 ** 33 + 1, 9)
    together, turned = draw(name, seeds), draw(name, seeds[::-1])
    assert together.isfinite().all() and torch.equal(together, turned.flip(0))
    for place, seed in enumerate(seeds):
        assert torch.equal(draw(name, [seed])[0], together[place])


@pytest.mark.parametrize("name", [method.names[0] for method in METHODS if method.noise == "brownian"])
def test_with_brownian_noise_more_steps_refine_the_picture(name: str) -> None:
    """Each doubling of the steps changes it less; other noise would change it as much as another seed does."""
    pictures = [draw(f"{name} karras", range(6), n) for n in (10, 20, 40)]
    changes = [float((fine - coarse).square().mean().sqrt()) for coarse, fine in pairwise(pictures)]
    assert changes[0] > 1.5 * changes[1], changes
    assert changes[-1] < 0.15 * float((pictures[-1][1:] - pictures[-1][:-1]).square().mean().sqrt())
