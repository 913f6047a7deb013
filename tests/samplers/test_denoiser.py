import math

import pytest
import torch
from torch import Tensor

from minisd.samplers.denoiser import Conditioning, conditioned, denoiser, inpainting, to_output, to_x0
from minisd.samplers.schedule import Level, NoiseTable

TABLE = NoiseTable()
LEVEL = TABLE.at_t(417)


class Recorder:
    """A network that answers with what it is given, and keeps every call."""
    def __init__(self, out: Tensor | None = None) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        self.out = out

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor | None) -> Tensor:
        self.calls.append((x, t, context, label))
        return x[:, :4] * 0.5 + context.mean((1, 2)).view(-1, 1, 1, 1) if self.out is None else self.out


def cond(value: float = 0.0, b: int = 2, dtype: torch.dtype = torch.float32, **more: Tensor) -> Conditioning:
    return Conditioning(torch.full((b, 3, 5), value, dtype=dtype), **more)


@pytest.fixture
def noisy() -> tuple[Tensor, Tensor, Tensor]:
    """A picture, a noise, and x at LEVEL, in float64."""
    g = torch.Generator().manual_seed(0)
    picture, noise = torch.randn(2, 2, 4, 6, 6, generator=g, dtype=torch.float64)
    return picture, noise, picture + LEVEL.sigma * noise


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_a_perfect_answer_gives_the_picture(prediction: str, noisy: tuple[Tensor, Tensor, Tensor]) -> None:
    picture, noise, x = noisy
    alpha = 1 / LEVEL.scale
    answers = {"epsilon": noise, "v": alpha * noise - math.sqrt(1 - alpha ** 2) * picture, "x0": picture}
    denoise = denoiser(Recorder(answers[prediction]), prediction)
    torch.testing.assert_close(denoise(x, LEVEL, cond(dtype=torch.float64)), picture, rtol=1e-12, atol=1e-12)


def test_rows_of_a_condition() -> None:
    g = torch.Generator().manual_seed(0)
    context, label, concat = (torch.randn(3, *shape, generator=g) for shape in ((3, 5), (7,), (1, 2, 2)))
    some = Conditioning(context, label, concat).rows([2, 0, 2, 1])
    assert some.label is not None and some.concat is not None
    for got, whole in ((some.context, context), (some.label, label), (some.concat, concat)):
        assert torch.equal(got, torch.stack([whole[2], whole[0], whole[2], whole[1]]))
    assert Conditioning(context).rows([1]).label is None and Conditioning(context).rows([1]).concat is None


def test_what_the_network_is_given(noisy: tuple[Tensor, Tensor, Tensor]) -> None:
    x = noisy[2]
    network, label = Recorder(), torch.randn(2, 7)
    conditioned(denoiser(network), cond(label=label))(x.float(), Level(LEVEL.sigma, 416.25))
    given, t, context, given_label = network.calls[0]
    torch.testing.assert_close(given, (x / LEVEL.scale).float())
    assert t.tolist() == [416.25, 416.25] and t.dtype == torch.float32
    assert context.shape == (2, 3, 5) and given_label is label


def test_more_channels_join_after_scaling() -> None:
    network, extra = Recorder(), torch.full((2, 5, 6, 6), 3.0)
    x0 = denoiser(network)(torch.ones(2, 4, 6, 6), LEVEL, cond(concat=extra))
    given = network.calls[0][0]
    assert given.shape == (2, 9, 6, 6) and torch.equal(given[:, 4:], extra) and x0.shape == (2, 4, 6, 6)


def test_the_network_has_its_dtype_and_x_keeps_its_own() -> None:
    network = Recorder()
    x0 = denoiser(network)(torch.ones(2, 4, 6, 6), LEVEL, cond(dtype=torch.bfloat16))
    assert network.calls[0][0].dtype == torch.bfloat16 and x0.dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_output_and_x0_are_each_others_inverse(prediction: str, noisy: tuple[Tensor, Tensor, Tensor]) -> None:
    picture, noise, x = noisy
    out = to_output(prediction, x, picture, LEVEL)
    alpha = 1 / LEVEL.scale
    expected = {"epsilon": noise, "v": alpha * noise - math.sqrt(1 - alpha ** 2) * picture, "x0": picture}
    torch.testing.assert_close(out, expected[prediction], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_x0(prediction, x, out, LEVEL), picture, rtol=1e-12, atol=1e-12)


def test_what_is_known_is_shown_at_the_level_and_kept(noisy: tuple[Tensor, Tensor, Tensor]) -> None:
    picture, noise, x = noisy
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 2:4, 1:5] = True
    seen: list[Tensor] = []

    def look(x: Tensor, level: Level) -> Tensor:
        seen.append(x)
        return x * 0.3

    x0 = inpainting(look, picture, mask, noise)(torch.full_like(x, 5.0), LEVEL)
    inside = mask.expand_as(x)
    assert (seen[0][inside] == 5).all() and torch.equal(seen[0][~inside], x[~inside])
    assert (x0[inside] == 5 * 0.3).all() and torch.equal(x0[~inside], picture[~inside])


def test_cat_joins_everything() -> None:
    one, two = (cond(v, label=torch.full((2, 7), v), concat=torch.full((2, 5, 6, 6), v)) for v in (0.1, 0.7))
    both = one.cat(two)
    assert both.context.shape == (4, 3, 5) and both.label.shape == (4, 7) and both.concat.shape == (4, 5, 6, 6)
    assert both.label[:2].eq(0.1).all() and both.concat[2:].eq(0.7).all()
    assert cond().cat(cond()).label is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="pad both"):
        cond().cat(Conditioning(torch.zeros(2, 6, 5)))
    with pytest.raises(ValueError, match="label, the other has none"):
        cond(label=torch.zeros(2, 7)).cat(cond())
    with pytest.raises(ValueError, match="concat, the other has none"):
        cond().cat(cond(concat=torch.zeros(2, 5, 6, 6)))
