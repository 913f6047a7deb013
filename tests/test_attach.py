"""Adapters on and off: what they add against the formula, and nothing left behind."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minisd import attach
from minisd.attach import LoRASpec
from minisd.config import BK_SMALL, TINY
from minisd.errors import MinisdError
from minisd.lora import Hadamard, Kronecker, LoRAConv2d, LoRALinear, LowRank, Side, hosted
from minisd.unet import UNet

EVERYTHING = ("*",)
ATTENTION = ("*_attn.*",)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def unet() -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(TINY).double().requires_grad_(False)


def ask(unet: UNet) -> torch.Tensor:
    with torch.no_grad():
        return unet(draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), draw(2, 5, 32, seed=1))


def trained(model: nn.Module, name: str, patterns: tuple[str, ...] = EVERYTHING, seed: int = 0, rank: int = 2) -> None:
    """An adapter that adds something everywhere."""
    generator = torch.Generator().manual_seed(seed)
    attach.attach(model, LoRASpec(name, rank, 1.0, patterns), generator)
    for side in attach.sides(model, name).values():
        side.double()
        for parameter in side.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


# --- on ---


def test_a_new_adapter_adds_nothing_and_alone_is_trained(unet: UNet) -> None:
    before, parameters = ask(unet), list(unet.parameters())
    new = attach.attach(unet, LoRASpec("style", 4, targets=ATTENTION), torch.Generator().manual_seed(0))
    unet.double()
    assert torch.equal(ask(unet), before)
    assert {id(p) for p in parameters} < {id(p) for p in unet.parameters()}
    named = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert named == {name for name, _ in unet.named_parameters() if ".lora.style." in name}
    assert len(named) == len(new) == 16 * 2 * 4 * 2  # transformers, attentions, q k v out, sides


def test_hooks_go_on_a_module_with_side_paths_and_stay_there(unet: UNet) -> None:
    calls: list[str] = []
    layer, path = unet.mid.attn[0].layers[0].self_attn, "mid.attn.0.layers.0.self_attn.q"
    layer.q.register_forward_hook(lambda *_: calls.append("before"))
    trained(unet, "style", (path,))
    hook = layer.q.register_forward_hook(lambda *_: calls.append("beside"))
    ask(unet)
    assert calls == ["before", "beside"]
    hook.remove()
    attach.detach(unet, "style")
    ask(unet)
    assert calls == ["before", "beside", "before"]


def test_targets_are_patterns_and_each_finds_something(unet: UNet) -> None:
    assert attach.targets(unet, ("mid.attn.0.layers.0.self_attn.q",)) == ["mid.attn.0.layers.0.self_attn.q"]
    assert all(".res." in path for path in attach.targets(unet, ("up.?.res.*.conv?",)))
    with pytest.raises(MinisdError, match=r"nothing\.\*"):
        attach.targets(unet, ("*_attn.*", "nothing.*"))


@pytest.mark.parametrize(("name", "rank"), [("", 4), ("a.b", 4), ("a", 0)])
def test_a_spec_that_cannot_be(name: str, rank: int) -> None:
    with pytest.raises(ValueError):
        LoRASpec(name, rank)


@pytest.mark.parametrize("host", [
    nn.Linear(6, 4).double(), nn.Linear(6, 4, bias=False).double(),
    nn.Conv2d(6, 4, 3, padding=1).double(), nn.Conv2d(6, 4, 3, stride=2).double(), nn.Conv2d(6, 4, 1).double(),
], ids=["linear", "no bias", "conv", "stride 2", "1x1"])
def test_every_kind_adds_what_its_formula_says(host: nn.Linear | nn.Conv2d) -> None:
    """Against the module with the sum in its weight; the deltas themselves against sums written out."""
    conv, shape = isinstance(host, nn.Conv2d), host.weight.shape
    k, end = shape[2:], (1, 1) if conv else ()
    n_in = shape[1:].numel()
    kinds: dict[str, tuple[Side, torch.Tensor]] = {}
    down, up = draw(2, *shape[1:]), draw(4, 2, *end, seed=1)
    kinds["lora"] = LowRank(down, up, 3.0), 1.5 * torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1))
    a, b, c, d = draw(4, 2), draw(2, n_in, seed=1), draw(4, 2, seed=2), draw(2, n_in, seed=3)
    hadamard = torch.einsum("or,ri,os,si->oi", a, b, c, d)
    kinds["loha"] = Hadamard((a, b), (c, d), 4.0, tuple(shape)), 2 * hadamard
    small, left, right = draw(2, 3), draw(2, 1, seed=1), draw(1, 2, *k, seed=2)
    large = torch.einsum("or,r...->o...", left, right)
    product = torch.einsum("ab,cd...->acbd...", small, large)
    kinds["lokr"] = Kronecker((small,), (left, right), 5.0, tuple(shape)), 5 * product
    if conv:
        tall, mid, flat = draw(4, 3, 1, 1), draw(3, 3, *k, seed=1), draw(3, 6, 1, 1, seed=2)
        delta = torch.einsum("or,rs...,si->oi...", tall[..., 0, 0], mid, flat[..., 0, 0])
        kinds["mid"] = LowRank(flat, tall, 3.0, mid), delta
    x = draw(2, 6, 9, 9) if conv else draw(2, 5, 6)
    for name, (side, delta) in kinds.items():
        assert torch.allclose(side.delta(), delta.reshape(shape), atol=1e-12), name
        whole, lora = copy.deepcopy(host), hosted(host)
        whole.weight.data += 0.7 * delta.reshape(shape)
        lora.lora["one"] = side.double()
        side.strength.fill_(0.7)
        assert torch.allclose(lora(x), whole(x), atol=1e-12), name


def test_several_at_once_by_their_strengths(unet: UNet) -> None:
    plain = ask(unet)
    for seed, name in enumerate(("one", "two")):
        trained(unet, name, ATTENTION, seed)
    assert attach.adapters(unet) == ["one", "two"]
    both = ask(unet)
    attach.reweigh(unet, "two", 0)
    one = ask(unet)
    attach.reweigh(unet, "one", 0)
    assert torch.equal(ask(unet), plain)          # off is off to the bit
    attach.reweigh(unet, "one", 1)
    attach.reweigh(unet, "two", 1)
    assert torch.equal(ask(unet), both) and not torch.allclose(both, one)
    attach.detach(unet, "two")
    assert torch.equal(ask(unet), one)


def test_strengths_by_block(unet: UNet) -> None:
    trained(unet, "style", ATTENTION)
    attach.reweigh(unet, "style", {"down.*": 0.25, "mid.*": 1, "down.0.*": 0.5})
    found = {path: side.strength.item() for path, side in attach.sides(unet, "style").items()}
    assert {value for path, value in found.items() if path.startswith("down.0.")} == {0.5}
    assert {value for path, value in found.items() if path.startswith("down.1.")} == {0.25}
    assert {value for path, value in found.items() if path.startswith("up.")} == {0}


def test_names_that_are_there_or_not(unet: UNet) -> None:
    trained(unet, "style", ATTENTION)
    with pytest.raises(MinisdError, match="attached already"):
        trained(unet, "style", ATTENTION)
    for act in (attach.detach, attach.sides, lambda model, name: attach.reweigh(model, name, 1)):
        with pytest.raises(MinisdError, match="attached: style"):
            act(unet, "other")


# --- off ---


def test_detached_it_is_the_same_model(unet: UNet) -> None:
    before, printed = dict(unet.named_parameters()), str(unet)
    trained(unet, "style")
    assert str(unet) != printed
    attach.detach(unet, "style")
    after = dict(unet.named_parameters())
    assert str(unet) == printed and before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_merged_it_computes_the_same_and_comes_out_to_the_bit(unet: UNet) -> None:
    trained(unet, "one", EVERYTHING, 0)
    trained(unet, "two", ATTENTION, 1)
    attach.reweigh(unet, "two", 0.3)
    beside, parameters = ask(unet), dict(unet.named_parameters())
    merged = attach.merge(unet)
    assert not any(isinstance(module, LoRALinear | LoRAConv2d) for module in unet.modules())
    assert (ask(unet) - beside).abs().max() < 1e-6 * beside.abs().max()       # the sum is rounded to float32
    merged.undo()
    assert torch.equal(ask(unet), beside)
    assert all(parameters[name] is parameter for name, parameter in unet.named_parameters())


def test_a_pruned_unet_takes_one_too() -> None:
    small = UNet(replace(BK_SMALL, widths=(8, 16, 16, 16), groups=4, heads=2, context_dim=8))
    new = attach.attach(small, LoRASpec("style"), torch.Generator().manual_seed(0))
    assert new and all(parameter.requires_grad for parameter in new)


def test_gradients_are_those_of_the_sum() -> None:
    host, side = nn.Linear(6, 4).double(), LowRank(draw(2, 6), draw(4, 2, seed=1), 2.0)
    lora, x = hosted(host), draw(3, 6, seed=2)
    lora.lora["one"] = side
    lora(x).square().sum().backward()
    down, up = (p.detach().clone().requires_grad_() for p in (side.down, side.up))
    F.linear(x, host.weight + up @ down, host.bias).square().sum().backward()
    assert torch.allclose(side.down.grad, down.grad) and torch.allclose(side.up.grad, up.grad)
