"""Deep features used again: what a call computes, when it is whole, and that nothing stays behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from comparison import difference, random_model
from tiny import TINY_UNETS
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.fast.passes import plain, quicken
from minisd.fast.reuse import Reusing
from minisd.sites import Sites, unet_sites
from minisd.unet import UNet

CONFIGS = TINY_UNETS | {
    "one stage": replace(TINY_UNETS["sd15"], widths=(16,), depths=(1,)),
    "one stage, midless": replace(TINY_UNETS["sd15"], widths=(16,), depths=(1,), mid_depth=None, layers=3)}
Told = tuple[Tensor, ...]


def told(cfg: UNetConfig, seed: int, batch: int = 2) -> Told:
    """What a UNet is told in one call."""
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise)

    label = (normal(batch, cfg.label_dim),) if cfg.label_dim else ()
    return (normal(batch, cfg.in_channels, 7, 9), torch.linspace(900.0 - 50 * seed, 17, batch),
            normal(batch, 5, cfg.context_dim), *label)


@contextmanager
def below(unet: UNet, deep: Tensor | None = None) -> Iterator[list[Tensor]]:
    """What comes up to the last two blocks of a plain UNet, by a hook; `deep` takes its place if it is given."""
    seen: list[Tensor] = []
    block = unet.up[-1].res[-2]

    def hook(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        channels = args[0].shape[1] - unet.cfg.widths[0]
        seen.append(args[0][:, :channels].clone())
        return (args[0] if deep is None else torch.cat([deep, args[0][:, channels:]], dim=1)), args[1]

    handle = block.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def counting(unet: UNet) -> Iterator[list[int]]:
    """Batch sizes of the whole calls."""
    seen: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_call_that_is_not_whole_is_the_unet_with_what_came_from_below_before(name: str) -> None:
    cfg = CONFIGS[name]
    unet = random_model(UNet, cfg)
    first, second = told(cfg, 1), told(cfg, 2)
    with torch.inference_mode():
        with below(unet) as seen:
            whole = unet(*first)
        with below(unet, seen[0]):
            expected = unet(*second)
        reusing = Reusing(unet, 2)
        assert torch.equal(reusing(*first), whole)
        assert torch.equal(reusing(*second), expected)
        assert not torch.equal(expected, unet(*second))
        assert torch.equal(reusing(*second), unet(*second)), "the third is whole again"


def test_less_is_computed() -> None:
    unet = random_model(UNet, CONFIGS["sd15"])
    ran: set[str] = set()
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: ran.add(name))
    reusing = Reusing(unet, 2)
    reusing(*told(unet.cfg, 1))
    ran.clear()
    reusing(*told(unet.cfg, 2))
    assert {name for name in ran if name.startswith(("down", "mid", "up")) and name.count(".") == 3} == {
        "down.0.res.0", "down.0.attn.0", "up.3.res.1", "up.3.attn.1", "up.3.res.2", "up.3.attn.2"}


def test_one_of_so_many_calls_is_whole() -> None:
    unet = random_model(UNet, CONFIGS["sd15-midless"])
    for every, whole in ((1, 5), (2, 3), (3, 2), (100, 1)):
        reusing = Reusing(unet, every)
        with counting(unet) as seen, torch.inference_mode():
            for seed in range(5):
                reusing(*told(unet.cfg, seed, 1))
        assert len(seen) == whole


def test_every_call_whole_has_equal_bits() -> None:
    unet = random_model(UNet, CONFIGS["sdxl"])
    reusing = Reusing(unet, 1)
    with torch.inference_mode():
        for seed in range(3):
            assert torch.equal(reusing(*told(unet.cfg, seed)), unet(*told(unet.cfg, seed)))


def test_another_batch_size_begins_anew() -> None:
    unet = random_model(UNet, CONFIGS["sd15"])
    reusing = Reusing(unet, 3)
    with counting(unet) as seen, torch.inference_mode():
        for batch in (2, 2, 1, 1, 1, 1, 2):
            reusing(*told(unet.cfg, batch, batch))
    assert seen == [2, 1, 1, 2]


def test_the_unet_stays_as_it_was() -> None:
    unet = random_model(UNet, CONFIGS["sd15"])
    inputs, names, state = told(unet.cfg, 1), [name for name, _ in unet.named_modules()], unet.state_dict()
    kinds, before = [type(module) for module in unet.modules()], unet(*inputs)
    reusing = Reusing(unet, 5)
    for seed in range(3):
        reusing(*told(unet.cfg, seed))
    assert torch.equal(unet(*inputs), before)
    assert [name for name, _ in unet.named_modules()] == names and [type(one) for one in unet.modules()] == kinds
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())


def test_two_walks_know_nothing_of_each_other() -> None:
    unet = random_model(UNet, CONFIGS["sd15"])
    calls = [told(unet.cfg, seed, 1) for seed in range(4)]
    with torch.inference_mode():
        one, mixed, other = (Reusing(unet, 3) for _ in range(3))
        alone = [one(*inputs) for inputs in calls]
        for inputs, expected in zip(calls, alone, strict=True):
            assert torch.equal(mixed(*inputs), expected)
            other(*told(unet.cfg, 9, 1))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_quickened_layers_give_the_same(name: str) -> None:
    unet = random_model(UNet, CONFIGS[name])
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls = [told(unet.cfg, seed) for seed in range(3)]
    with torch.inference_mode():
        slow = Reusing(unet, 3)
        expected = [slow(*inputs) for inputs in calls]
        quicken(unet)
        fast = Reusing(unet, 3)
        for inputs, one in zip(calls, expected, strict=True):
            assert difference(fast(*inputs), one).relative < 2e-5
        plain(unet)
        again = Reusing(unet, 3)
        for inputs, one in zip(calls, expected, strict=True):
            assert torch.equal(again(*inputs), one)


def test_what_is_added_outside_counts_in_each_call_and_what_is_added_deeper_in_whole_ones() -> None:
    """A ControlNet's residuals: `skip.0` and `skip.1` are read each time, the others came up with the deep feature."""
    unet = random_model(UNet, CONFIGS["sd15"])
    shapes = unet_sites(unet.cfg, 7, 9)
    first, second = told(unet.cfg, 1), told(unet.cfg, 2)

    def after(before: dict[str, float], now: dict[str, float]) -> Tensor:
        reusing = Reusing(unet, 2)
        reusing(*first, sites=Sites({name: torch.full(shapes[name], value) for name, value in before.items()}))
        return reusing(*second, sites=Sites({name: torch.full(shapes[name], value) for name, value in now.items()}))

    nothing = after({}, {})
    for site in ("conv_in", "skip.0", "skip.1", "up.3"):
        assert not torch.equal(after({}, {site: 1.0}), nothing), site
    for site in ("mid", "skip.2", "skip.11", "down.3", "deep.1"):
        assert torch.equal(after({}, {site: 1.0}), nothing), site
        assert not torch.equal(after({site: 1.0}, {}), nothing), site
