import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisd.samplers.loop import sample
from minisd.samplers.multistep import DPMMultistep
from minisd.samplers.noise import END, NOISES, BrownianNoise, BrownianPath, ImageNoise, place
from minisd.samplers.onestep import Euler
from minisd.samplers.schedule import CLEAN, Level, NoiseTable, beta, karras

SHAPE = (4, 8, 8)
LARGE = (4, 100, 100)                                  # 40 000 numbers: a mean is sure to 0.005
TABLE = NoiseTable()


def at(sigma: float) -> Level:
    return Level(sigma, 0.0)


# ---------------------------------------------------------------- fresh noise
def test_a_picture_has_its_noise_whatever_the_batch() -> None:
    """Alone, among others, in another place: the initial noise and every later draw have equal bits."""
    together = ImageNoise([7, 8, 9, 10], SHAPE)
    reversed_ = ImageNoise([10, 9, 8, 7], SHAPE)
    alone = [ImageNoise([seed], SHAPE) for seed in (7, 8, 9, 10)]
    for _ in range(5):
        batch, backwards = together.draw(), reversed_.draw()
        assert torch.equal(batch, torch.cat([one.draw() for one in alone]))
        assert torch.equal(batch, backwards.flip(0))


def test_the_first_draw_is_what_a_cpu_generator_gives() -> None:
    wanted = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    assert torch.equal(ImageNoise([7], SHAPE).draw()[0], wanted)


def test_draws_go_on() -> None:
    noise = ImageNoise([0], SHAPE)
    first, second = noise.draw(), noise(CLEAN, CLEAN)
    assert first.shape == (1, *SHAPE) and not torch.equal(first, second)
    again = ImageNoise([0], SHAPE)
    assert torch.equal(again.draw(), first) and torch.equal(again.draw(), second)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    ImageNoise([3], SHAPE).draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_dtype_sees_the_same_noise() -> None:
    whole = ImageNoise([3], SHAPE).draw()
    assert whole.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(ImageNoise([3], SHAPE, dtype=dtype).draw(), whole.to(dtype))


def test_any_whole_number_is_a_seed() -> None:
    assert ImageNoise([2 ** 64 - 1, 2 ** 64, -1], SHAPE).draw().isfinite().all()


def test_it_is_standard_normal() -> None:
    drawn = ImageNoise(range(20), SHAPE).draw()
    assert abs(float(drawn.mean())) < 0.05 and abs(float(drawn.std()) - 1) < 0.05


def test_all_64_bits_of_a_seed_count() -> None:
    """torch's own CPU generator gives seeds 2^32 apart the same numbers."""
    plain = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7 + 2 ** 32)]
    assert torch.equal(*plain), "the generator has been put right: all seeds may be its own"
    seeds = [7, 7 + 2 ** 32, 7 + 2 ** 33, 7 + 2 ** 63, 2 ** 64 - 1, 2 ** 53 + 2 ** 32, 2 ** 53 + 2 ** 32 + 1]
    for noise in (ImageNoise(seeds, LARGE), BrownianNoise(seeds, LARGE)):
        for drawn in (noise.draw(), noise.draw(), noise(at(3.0), at(2.0))):
            correlation = torch.corrcoef(drawn.flatten(1))
            assert float((correlation - torch.eye(len(seeds))).abs().max()) < 0.025
            assert drawn.std(dim=(1, 2, 3)).tolist() == pytest.approx([1.0] * len(seeds), abs=0.02)


# ---------------------------------------------------------------- Brownian noise
def test_the_initial_noise_is_the_same_of_either_kind() -> None:
    drawn = [kind([5, 2 ** 40], SHAPE).draw() for kind in NOISES.values()]
    assert torch.equal(*drawn)


def test_increments_are_standard_normal_and_those_of_disjoint_steps_independent() -> None:
    """Along a schedule, and beside the initial noise."""
    schedule = karras(TABLE, 8)[:-1]
    noise = BrownianNoise([11], LARGE)
    drawn = torch.cat([noise.draw(), *(noise(now, next) for now, next in pairwise(schedule))])
    assert drawn.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.0] * 8, abs=0.02)
    assert drawn.std(dim=(1, 2, 3)).tolist() == pytest.approx([1.0] * 8, abs=0.015)
    assert float((torch.corrcoef(drawn.flatten(1)) - torch.eye(8)).abs().max()) < 0.02


@pytest.mark.parametrize(("one", "other", "shared"), [
    ((8.0, 2.0), (8.0, 4.0), math.sqrt(1 / 2)),        # two octaves, and the first of them
    ((8.0, 1.0), (2.0, 1.0), math.sqrt(1 / 3)),
    ((8.0, 2.0), (4.0, 1.0), 1 / 2),                   # they overlap in one of two octaves each
    ((8.0, 2.0), (2.0, 8.0), -1.0),                    # there and back
    ((14.6, 0.03), (3.0, 2.9), math.sqrt(math.log(3.0 / 2.9) / math.log(14.6 / 0.03)))])
def test_increments_are_as_alike_as_the_way_they_share(one: tuple[float, float], other: tuple[float, float],
                                                       shared: float) -> None:
    """Covariance of a Brownian path: the part of log sigma that both cross, over the root of both lengths."""
    noise = BrownianNoise([3], LARGE)
    drawn = [noise(at(start), at(end)).flatten() for start, end in (one, other)]
    assert float(torch.corrcoef(torch.stack(drawn))[0, 1]) == pytest.approx(shared, abs=0.02)


def test_the_increment_between_two_levels_does_not_depend_on_those_between() -> None:
    """One step, and the sum of the steps of six schedules through both levels, in either direction."""
    whole = BrownianNoise([3], SHAPE)(at(14.0), at(0.05)) * distance(at(14.0), at(0.05))
    for n in (1, 2, 3, 10, 300):
        sigmas = [14.0 * (0.05 / 14.0) ** (i / n) for i in range(n + 1)]
        for levels in (list(map(at, sigmas)), list(map(at, sigmas[::-1]))):
            noise = BrownianNoise([3], SHAPE)
            total = sum(noise(now, next) * distance(now, next) for now, next in pairwise(levels))
            sign = 1 if levels[0].sigma == 14.0 else -1
            assert float((sign * total - whole).abs().max()) < 2e-4 * float(whole.abs().max()), f"{n} steps"


def distance(now: Level, next: Level) -> float:
    return math.sqrt(abs(place(next.sigma) - place(now.sigma)))


def test_the_path_has_no_memory() -> None:
    """Asked before for whatever else, in whatever order, it says the same to the bit."""
    g = torch.Generator().manual_seed(1)
    places = [*torch.randint(0, END, (40,), generator=g).tolist(), 0, END, END // 2, 1, END - 1]
    walked = BrownianPath(9, (3,))
    first = [walked.at(place) for place in places]
    assert all((BrownianPath(9, (3,)).at(place) == w).all() for place, w in zip(places, first, strict=True))
    assert all((walked.at(place) == w).all() for place, w in zip(places[::-1], first[::-1], strict=True))


@pytest.mark.parametrize("levels", [karras(TABLE, 5), beta(TABLE, 1000)[:20]])
def test_a_brownian_picture_has_its_noise_whatever_the_batch(levels: list[Level]) -> None:
    together = BrownianNoise([7, 8, 2 ** 40], SHAPE)
    drawn = [together(now, next) for now, next in pairwise(levels)]
    for i, seed in enumerate((7, 8, 2 ** 40)):
        alone = BrownianNoise([seed], SHAPE)
        alone(at(1.0), at(0.3))                        # and whatever it was asked before
        for (now, next), wanted in zip(pairwise(levels), drawn, strict=True):
            assert torch.equal(alone(now, next)[0], wanted[i])


def test_a_brownian_picture_stays_as_it_is() -> None:
    """Values of seeds 0 and 2^63 + 1 with numpy 2.4; if they change, every picture drawn with them does."""
    drawn = BrownianNoise([0, 2 ** 63 + 1], (3,))(at(14.6), at(1.0))
    assert drawn.tolist() == [[-0.2130124270915985, 0.08590555191040039, 0.17110596597194672],
                              [-0.13943596184253693, -0.8477663993835449, 0.24014732241630554]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_brownian_noise_is_drawn_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    whole = BrownianNoise([3], SHAPE)(at(2.0), at(1.0))
    assert torch.equal(BrownianNoise([3], SHAPE, dtype=dtype)(at(2.0), at(1.0)), whole.to(dtype))


def test_levels_too_close_to_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="too close"):
        BrownianNoise([0], SHAPE)(at(1.0), at(1.0 + 1e-9))


def test_every_sigma_has_a_place() -> None:
    """Beyond 2^16 and below 2^-16, which no table reaches, and at 0, it is the ends."""
    assert place(2.0 ** 16) == 0 == place(1e9) and place(2.0 ** -16) == END == place(0.0) == place(1e-30)
    assert place(1.0) == END // 2
    for name in ("scaled_linear", "cosine"):
        table = NoiseTable(betas=name, zero_snr=True)
        assert 0 < place(table.sigmas[-1]) < place(table.sigmas[0]) < END


@pytest.mark.parametrize("solver", [Euler(eta=1.0), DPMMultistep(2, eta=1.0)])
def test_more_steps_refine_a_picture(solver: Euler | DPMMultistep) -> None:
    """On one Brownian path an SDE converges to a picture, at order 1 in the number of steps; fresh noise does not."""
    def walk(n: int, kind: str) -> Tensor:
        noise = NOISES[kind]([3], (1, 24, 24))
        schedule = [at(10.0 * (0.05 / 10.0) ** (i / n)) for i in range(n + 1)]
        return sample(solver, lambda x, level: x * 0.49 / (0.49 + level.sigma ** 2), 10.0 * noise.draw().double(),
                      schedule, TABLE, noise=lambda *way: noise(*way).double())

    def error(n: int, kind: str = "brownian") -> float:
        return float((walk(n, kind) - fine).square().mean().sqrt())

    fine = walk(640, "brownian")
    errors = [error(n) for n in (10, 20, 40, 80)]
    assert all(1.5 < coarse / finer < 4 for coarse, finer in pairwise(errors)), errors
    assert errors[-1] < 0.05 < 0.5 < error(80, "fresh")
