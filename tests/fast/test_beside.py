"""Quickened layers with side paths: what they add, by either way, against the formula; and that none is out of date."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import cast

import pytest
import torch
from comparison import difference, random_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minisd import attach
from minisd.config import TINY
from minisd.fast import beside
from minisd.fast.onednn import serves
from minisd.fast.passes import plain, quicken
from minisd.lora import Hadamard, Kronecker, LowRank, Side, hosted
from minisd.unet import UNet

pytestmark = pytest.mark.skipif(not serves(torch.zeros(1)), reason="PyTorch was built without oneDNN")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if serves(torch.zeros(1, dtype=dtype))]
WIDE, RANK = (48, 64), 4                              # in and out
WAYS = {"sides": 0, "weights": beside.ROWS}           # what is added up: `ROWS` for which it is so here


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(beside, "ROWS", WAYS[request.param])
    return str(request.param)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape) / 4


def low(ends: tuple[int, ...] = ()) -> Side:
    return LowRank(drawn(RANK, WIDE[0], *ends), drawn(WIDE[1], RANK, *ends), 3.0)


def core() -> Side:
    return LowRank(drawn(RANK, WIDE[0], 1, 1), drawn(WIDE[1], RANK, 1, 1), 3.0, drawn(RANK, RANK, 1, 1))


def loha() -> Side:
    pairs = [(drawn(WIDE[1], RANK), drawn(RANK, WIDE[0])) for _ in range(2)]
    return Hadamard(pairs[0], pairs[1], 3.0, WIDE[::-1])


def lokr() -> Side:
    return Kronecker((drawn(8, 6),), (drawn(8, 2), drawn(2, 8)), 3.0, WIDE[::-1])


BESIDE: dict[str, list[Callable[[], Side]]] = {
    "lora": [low], "three": [low, low, low], "loha": [loha], "lokr": [lokr], "all": [low, lokr, low, loha]}


def linear(sides: list[Callable[[], Side]], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A Linear with these beside, each in a strength of its own, quickened."""
    return dressed(nn.Linear(*WIDE), [make() for make in sides], dtype)


def dressed(module: nn.Linear | nn.Conv2d, sides: list[Side], dtype: torch.dtype) -> nn.Sequential:
    host = hosted(module)
    for n, side in enumerate(sides):
        host.lora[f"s{n}"] = side
        side.strength.fill_(0.9 - 0.7 * n)
    host.requires_grad_(False)
    for parameter in host.parameters():               # strengths and scales stay float32
        parameter.data = parameter.data.to(dtype)
    return quicken(nn.Sequential(host))


@torch.no_grad()
def exact(model: nn.Sequential, x: Tensor) -> Tensor:
    """By the formula, in double precision."""
    layer = plain(copy.deepcopy(model))[0].double()
    total = layer.weight + sum(side.strength * side.delta().view_as(layer.weight) for side in layer.lora.values())
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x.double(), total, layer.bias)
    return nn.functional.conv2d(x.double(), total, layer.bias)


def found(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


# --- either way against the formula ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(1, 3), (2, 40)], ids=str)
@pytest.mark.parametrize("sides", BESIDE)
def test_a_linear_adds_what_the_formula_says(sides: str, way: str, rows: tuple[int, int], dtype: torch.dtype) -> None:
    model, x = linear(BESIDE[sides], dtype), torch.randn(*rows, WIDE[0]).to(dtype)
    must_be_exact(model, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_point_adds_what_the_formula_says(way: str, dtype: torch.dtype, last: bool) -> None:
    sides = [low((1, 1)), core(), low((1, 1))]
    model, x = dressed(nn.Conv2d(*WIDE, 1), sides, dtype), torch.randn(2, WIDE[0], 16, 24).to(dtype)
    must_be_exact(model, x.to(memory_format=torch.channels_last) if last else x)


def must_be_exact(model: nn.Sequential, x: Tensor) -> None:
    """To float32's precision; in a narrower one no further away than twice what the plain side paths are."""
    wanted, bits = exact(model, x), [tensor.clone() for tensor in model.state_dict().values()]
    distance = difference(found(model, x), wanted).relative
    if x.dtype == torch.float32:
        assert distance < 1e-6
    else:
        sides = difference(found(plain(copy.deepcopy(model)), x), wanted).relative
        assert 0 < distance < 2 * sides
    assert all(map(torch.equal, model.state_dict().values(), bits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_is_the_weight_that_merging_makes(dtype: torch.dtype) -> None:
    model, x = linear(BESIDE["three"], dtype), torch.randn(2, 400, WIDE[0]).to(dtype)
    answer = found(model, x)
    attach.merge(model)
    merged = found(quicken(model), x)
    assert difference(answer, merged).relative < {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_strength_nothing_is_added_to_the_bit(way: str, dtype: torch.dtype) -> None:
    model, x = linear(BESIDE["three"], dtype), torch.randn(2, 40, WIDE[0]).to(dtype)
    for side in model[0].lora.values():
        side.strength.fill_(0)
    answer = found(model, x)
    attach.merge(model)
    assert torch.equal(answer, found(quicken(model), x))


# --- which way ---


class Made(TorchDispatchMode):
    """Sizes of the tensors that come into being."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        y = func(*args, **(kwargs or {}))
        lent = {one.data_ptr() for one in args if isinstance(one, Tensor)}
        self.sizes |= {y.numel()} if isinstance(y, Tensor) and y.data_ptr() not in lent else set()
        return y


@pytest.mark.parametrize(("width", "out", "summed"), [
    (320, 320, True), (320, 2560, True), (640, 640, True), (768, 640, True), (640, 5120, False), (1280, 1280, False)])
def test_the_smaller_sum_is_made_whatever_the_batch(width: int, out: int, summed: bool) -> None:
    """At the widths of SD1.5; a picture would else have other bits in another batch."""
    model = dressed(nn.Linear(width, out), [LowRank(drawn(RANK, width), drawn(out, RANK), 3.0)], torch.float32)
    before = dict(vars(model[0]))
    for rows in (7, 900):
        with Made() as made:
            found(model, torch.empty(1, rows, width))
        assert (width * out in made.sizes) == summed and (rows * RANK in made.sizes) != summed
    assert vars(model[0]) == before
    with beside.keeping():
        found(model, torch.empty(1, 7, width))
    with Made() as made:
        found(model, torch.empty(1, 7, width))
    assert (width * out in made.sizes) == summed      # nothing outlives a walk


@pytest.mark.parametrize("sides", BESIDE)
def test_within_a_walk_a_sum_is_made_once_to_the_same_bits(sides: str, way: str) -> None:
    model, x = linear(BESIDE[sides]), torch.randn(2, 40, WIDE[0])
    wanted = found(model, x)
    with beside.keeping():
        first = found(model, x)
        with Made() as made:
            again = found(model, x)
    assert torch.equal(first, wanted) and torch.equal(again, wanted)
    assert WIDE[0] * WIDE[1] not in made.sizes


# --- nothing is out of date ---


def changes(model: nn.Module, walking: bool) -> Iterator[str]:
    """Whatever may happen between two pictures, or within one."""
    side = cast(LowRank, attach.sides(model, "one")["mid.attn.0.layers.0.self_attn.q"])
    attach.reweigh(model, "one", 0.3)
    yield "weighed anew"
    side.strength.fill_(2.0)
    yield "by hand"
    (side.down if walking else side.down.data).mul_(3)
    yield "another matrix, and between pictures past autograd's sight"
    side.up.data = -side.up.data
    yield "another tensor"
    with torch.inference_mode():
        side.scale.mul_(2)
    yield "another alpha"
    model.load_state_dict({name: 1.5 * tensor for name, tensor in model.state_dict().items()})
    yield "other weights"
    put_on(model, "two", 5)
    yield "a second"
    learn(model, "two")
    yield "a step of training"
    attach.detach(model, "one")
    yield "one taken off"


def put_on(model: nn.Module, name: str, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for parameter in attach.attach(model, attach.LoRASpec(name, 2, targets=("*.attn.*",)), draws):
        parameter.requires_grad_(False).normal_(std=0.1, generator=draws)


def learn(model: nn.Module, name: str) -> None:
    """One update of a LoRA that has drawn."""
    parameters = attach.parameters(plain(model), name)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    model(*told()).square().mean().backward()
    optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def told() -> tuple[Tensor, ...]:
    draws = torch.Generator().manual_seed(0)
    return (torch.randn(2, 4, 16, 16, generator=draws), torch.tensor([3.0, 700.0]),
            torch.randn(2, 5, TINY.context_dim, generator=draws))


@pytest.mark.parametrize("walking", [False, True])
def test_every_change_shows_in_the_next_picture(way: str, walking: bool) -> None:
    with beside.keeping() if walking else nullcontext():
        must_show_changes(walking)


def must_show_changes(walking: bool) -> None:
    unet = random_model(UNet, TINY, 0).requires_grad_(False)
    put_on(unet, "one", 1)
    last = asked(quicken(unet, packed=False))         # packed weights know no copying
    for change in changes(unet, walking):
        answer = asked(quicken(unet, packed=False))
        wanted = asked(plain(copy.deepcopy(unet)))
        assert difference(answer, wanted).relative < 1e-5, change
        assert difference(answer, last).relative > 1e-4, change
        last = answer


def asked(unet: UNet) -> Tensor:
    with torch.inference_mode():
        return unet(*told())


# --- who computes otherwise ---


def test_gradients_and_autocast_are_pytorch_s_own() -> None:
    model, x = linear(BESIDE["all"]), torch.randn(2, 40, WIDE[0], requires_grad=True)
    wanted, = torch.autograd.grad(plain(copy.deepcopy(model))(x).square().sum(), x)
    gradient, = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.equal(gradient, wanted)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_it_gives_the_same_bits(way: str, dtype: torch.dtype) -> None:
    model, x = linear(BESIDE["three"], dtype), torch.randn(2, 40, WIDE[0]).to(dtype)
    torch.compiler.reset()
    with torch.inference_mode():
        assert torch.equal(torch.compile(model, fullgraph=True, dynamic=True, backend="eager")(x), model(x))
    torch.compiler.reset()
