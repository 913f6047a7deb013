"""Guidance: its scale on the way, what it mixes and skips, and what is corrected, against the papers' formulas."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisd.samplers.denoiser import Conditioning, denoiser, to_output, to_x0
from minisd.samplers.guidance import by_step, guided, guided_twice, place, rescaled, scale_at, thresholded
from minisd.samplers.schedule import Level, NoiseTable, karras, linspace

TABLE = NoiseTable()
LEVEL = TABLE.at_t(417)
SCHEDULE = linspace(TABLE, 5)
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Listening:
    """A network that answers by what it is told, and keeps the contexts of every call."""

    def __init__(self) -> None:
        self.contexts: list[Tensor] = []
        self.pictures: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None) -> Tensor:
        self.contexts.append(context[:, 0, 0])
        self.pictures.append(x[:, 4:])
        told = context.mean((1, 2)) + 3 * x[:, 4:].mean((1, 2, 3)).nan_to_num()
        return torch.tanh(x[:, :4] * told.view(-1, 1, 1, 1))


def cond(value: float, picture: float | None = None) -> Conditioning:
    concat = None if picture is None else torch.full((2, 4, 6, 6), picture, dtype=torch.float64)
    return Conditioning(torch.full((2, 3, 5), value, dtype=torch.float64), concat=concat)


def always(scale: float):
    return scale_at(scale, SCHEDULE)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- the scale
def test_the_place_of_a_level() -> None:
    for schedule in (SCHEDULE, karras(TABLE, 7)):
        assert [place(schedule, level) for level in schedule] == list(range(len(schedule)))
        half = (schedule[2].sigma + schedule[3].sigma) / 2
        assert place(schedule, Level(half, 0.0)) == pytest.approx(2.5)
    assert place(SCHEDULE, Level(1e9, 0.0)) == 0


@pytest.mark.parametrize(("ramp", "expected"), [
    ((), [7.5] * 5), ((1,), [7.5] * 5), ((0,), [1] * 5), ((0.5,), [4.25] * 5), ((1, 0), [7.5, 5.875, 4.25, 2.625, 1]),
    ((0, 1, 0), [1, 4.25, 7.5, 4.25, 1]), ((0, 0, 1, 1, 2), [1, 1, 7.5, 7.5, 14])])
def test_a_ramp_is_spread_over_the_steps(ramp: tuple[float, ...], expected: list[float]) -> None:
    at = scale_at(7.5, SCHEDULE, ramp)
    assert [at(level) for level in SCHEDULE[:-1]] == expected


def test_a_ramp_between_two_levels_is_linear_and_one_step_takes_its_beginning() -> None:
    between = Level((SCHEDULE[1].sigma + SCHEDULE[2].sigma) / 2, 0.0)
    assert scale_at(5.0, SCHEDULE, (1, 0))(between) == pytest.approx(1 + 4 * (1 - 1.5 / 4))
    assert scale_at(5.0, linspace(TABLE, 1), (0.5, 0))(linspace(TABLE, 1)[0]) == 3


def test_the_interval_is_open_below_and_closed_above() -> None:
    at = scale_at(7.5, SCHEDULE, interval=(SCHEDULE[3].sigma, SCHEDULE[1].sigma))
    assert [at(level) for level in SCHEDULE] == [1, 7.5, 7.5, 1, 1, 1]


def test_the_scale_itself_comes_out_to_the_bit() -> None:
    assert scale_at(0.1, SCHEDULE, (1, 1))(SCHEDULE[2]) == 0.1 != 1 + (0.1 - 1)


@pytest.mark.parametrize("first", [0, 2])
def test_each_step_has_its_denoiser_from_its_first_level_on(first: int) -> None:
    schedule = karras(TABLE, 5)
    walked = by_step([lambda x, level, n=n: x + n for n in range(5 - first)], schedule, first)
    zero = torch.zeros(1)
    assert [walked(zero, level).item() for level in schedule[first:]] == [*range(5 - first), 4 - first]
    between = [Level((a.sigma + 2 * b.sigma) / 3, 0.0) for a, b in pairwise(schedule)]
    assert [walked(zero, level).item() for level in between[first:]] == list(range(5 - first))
    assert walked(zero, Level(100.0, 0.0)).item() == 0, "raised above the first level, as by churn"


# ---------------------------------------------------------------- the mixture
def test_guidance_is_one_doubled_batch_negative_first() -> None:
    network = Listening()
    got = guided(denoiser(network), cond(0.7), cond(0.1), always(7.5))(X, LEVEL)
    assert [one.tolist() for one in network.contexts] == [[0.1, 0.1, 0.7, 0.7]]
    negative, positive = (denoiser(Listening())(X, LEVEL, cond(value)) for value in (0.1, 0.7))
    close(got, negative + 7.5 * (positive - negative))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_mixing_x0_is_mixing_the_prediction(prediction: str) -> None:
    """The usual form mixes the network's outputs; x0 is affine in them, so the result is the same."""
    network = Listening()
    got = guided(denoiser(network, prediction), cond(0.7), cond(0.1), always(3.0))(X, LEVEL)
    positive, negative = (network(X / LEVEL.scale, X, cond(value).context, None) for value in (0.7, 0.1))
    close(got, to_x0(prediction, X, negative + 3.0 * (positive - negative), LEVEL))


def test_where_the_scale_is_1_the_negative_half_is_skipped() -> None:
    network = Listening()
    denoise = guided(denoiser(network), cond(0.7), cond(0.1),
                     scale_at(7.5, SCHEDULE, interval=(SCHEDULE[3].sigma, SCHEDULE[1].sigma)))
    outside, *_ = [denoise(X, level) for level in SCHEDULE[:-1]]
    assert [len(one) for one in network.contexts] == [2, 4, 4, 2, 2]
    assert torch.equal(outside, denoiser(Listening())(X, SCHEDULE[0], cond(0.7)))


@pytest.mark.parametrize(("words", "picture", "calls"), [(7.5, 1.5, 6), (1.0, 1.5, 6), (7.5, 1.0, 4), (1.0, 1.0, 2)])
def test_guidance_by_words_and_by_a_picture(words: float, picture: float, calls: int) -> None:
    """Brooks et al., eq. 3, in the outputs; and what has no part in it is not computed."""
    network, other = Listening(), Listening()
    three = cond(0.7, 0.2), cond(0.1, 0.2), cond(0.1, 0.0)
    got = guided_twice(denoiser(network), *three, always(words), picture)(X, LEVEL)
    assert [len(one) for one in network.contexts] == [calls]
    both, image, none = (other(torch.cat([X / LEVEL.scale, c.concat], 1), X, c.context, None) for c in three)
    close(got, to_x0("epsilon", X, none + picture * (image - none) + words * (both - image), LEVEL))


# ---------------------------------------------------------------- the corrections
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_rescaling_is_lins_equations_14_to_16_in_the_outputs(prediction: str, share: float) -> None:
    network = Listening()
    got = guided(denoiser(network, prediction), cond(0.7), cond(0.1), always(7.5),
                 [rescaled(share, prediction)])(X, LEVEL)
    positive, negative = (network(X / LEVEL.scale, X, cond(value).context, None) for value in (0.7, 0.1))
    for n in range(2):                            # a picture's own deviation, whatever else is in the batch
        mixed = negative[n] + 7.5 * (positive[n] - negative[n])
        rescaled_ = mixed * (positive[n].std() / mixed.std())
        close(got[n], to_x0(prediction, X[n], share * rescaled_ + (1 - share) * mixed, LEVEL))


def test_rescaling_wholly_gives_the_deviation_back() -> None:
    alone, mixed = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    corrected = rescaled(1.0, "v")(9 * mixed, alone, X, LEVEL)
    got, wanted = (to_output("v", X, x0, LEVEL).flatten(1).std(dim=1) for x0 in (corrected, alone))
    close(got, wanted)


def test_thresholding_is_imagens_where_the_bound_is_1() -> None:
    """Section 2.3: s is the percentile of |x0|, at least 1; x0 is cut to [-s, s] and divided by s."""
    x0 = 3 * torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x0[1] *= 0.01                                 # within the bound: unchanged
    bound = torch.ones_like(x0) * torch.where(x0 > 0, 1, -1)
    got = thresholded(0.95)(x0, bound, x0, LEVEL)
    for n in range(3):
        values = sorted(x0[n].abs().flatten().tolist())
        place = 0.95 * (len(values) - 1)
        low = math.floor(place)
        s = max(values[low] + (place - low) * (values[low + 1] - values[low]), 1)
        close(got[n], (x0[n].clamp(-s, s) / s) if n != 1 else x0[n])
    assert got.abs().max() <= 1


def test_thresholding_never_leaves_more_than_was_there_without_guidance() -> None:
    alone = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    got = thresholded(0.99)(5 * alone, alone, X, LEVEL)
    close(got.abs().amax((1, 2, 3)), alone.abs().flatten(1).quantile(0.99, dim=1))
    assert torch.equal(thresholded(0.99)(alone, alone, X, LEVEL), alone)


def test_corrections_follow_each_other_and_rest_without_guidance() -> None:
    order: list[str] = []

    def noting(name: str, factor: float):
        def correct(x0: Tensor, alone: Tensor, x: Tensor, level: Level) -> Tensor:
            order.append(name)
            return x0 * factor
        return correct

    both = [noting("first", 2.0), noting("second", 3.0)]
    plain = guided(denoiser(Listening()), cond(0.7), cond(0.1), always(2.0))(X, LEVEL)
    close(guided(denoiser(Listening()), cond(0.7), cond(0.1), always(2.0), both)(X, LEVEL), plain * 6)
    guided(denoiser(Listening()), cond(0.7), cond(0.1), always(1.0), both)(X, LEVEL)
    assert order == ["first", "second"]
