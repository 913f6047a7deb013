"""Shortcuts, LoRA, 8 bits and the compiler in any company: they draw as plain layers with the same shortcuts do."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from comparison import difference, random_model
from torch import Tensor

from minisd import attach
from minisd.config import TINY
from minisd.drawing.conditions import shortened
from minisd.drawing.control import Shortcuts
from minisd.fast import compiled
from minisd.fast.compiled import compile_unet
from minisd.fast.eightbit import eight_bit
from minisd.fast.passes import plain, quicken
from minisd.unet import UNet

CFG = replace(TINY, widths=(16, 32), depths=(1, 0), mid_depth=None, layers=1, heads=2, groups=4)
BOTH = Shortcuts(reuse=2, merge=0.5)
KINDS = pytest.mark.parametrize(("lora", "small"), [(False, False), (True, False), (False, True), (True, True)])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """Those that the compiler traces, which are then run as they are."""
    found: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", count)
    compiled.whole.cache_clear()
    torch._dynamo.reset()
    yield found
    compiled.whole.cache_clear()


def built(lora: bool, small: bool) -> UNet:
    unet = random_model(UNet, CFG, 0).requires_grad_(False)
    if small:
        eight_bit(unet, torch.float32)
    if lora:
        draws = torch.Generator().manual_seed(0)
        for side in attach.attach(unet, attach.LoRASpec("a", targets=("*_attn.*", "*.conv1")), draws):
            side.requires_grad_(False).normal_(std=0.1, generator=draws)
    return unet


def walked(unet: UNet, shortcuts: Shortcuts) -> list[Tensor]:
    """The calls of a walk: whole, with features used again, whole, and one without guidance."""
    network, draws = shortened(unet, shortcuts), torch.Generator().manual_seed(0)
    x, context = (torch.randn(2, *shape, generator=draws) for shape in ((4, 16, 8), (7, CFG.context_dim)))
    with torch.inference_mode():
        return [network(x[:b] + n / 10, torch.full((b,), 500.0 - n), context[:b]) for n, b in enumerate((2, 2, 2, 1))]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(difference(a, b).relative for a, b in zip(found, wanted, strict=True))


@KINDS
@pytest.mark.parametrize("shortcuts", [Shortcuts(reuse=2), Shortcuts(merge=0.5), BOTH], ids=str)
def test_quickened(lora: bool, small: bool, shortcuts: Shortcuts) -> None:
    wanted, exact = (walked(plain(built(lora, small)), each) for each in (shortcuts, Shortcuts()))
    assert apart(walked(quicken(built(lora, small)), shortcuts), wanted) < 1e-5
    assert apart(wanted, exact) > 1e-3            # something was left out


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "small"), [(True, False), (False, True)])
def test_compiled(lora: bool, small: bool, graphs: list[torch.fx.GraphModule]) -> None:
    wanted = walked(quicken(built(lora, small)), BOTH)
    assert apart(walked(compile_unet(quicken(built(lora, small))), BOTH), wanted) < 1e-5
    assert len(graphs) == 2                       # merging is in pictures of one number and size
