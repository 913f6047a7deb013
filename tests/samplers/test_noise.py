import torch

from minisd.samplers.noise import ImageNoise
from minisd.samplers.schedule import CLEAN

SHAPE = (4, 8, 8)


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
