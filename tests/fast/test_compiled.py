"""The compiled UNet: how many graphs there are, whether it draws the same, and the way back."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import tiny_model
import torch
from comparison import difference, random_model
from PIL import Image
from torch import Tensor

from minisd import attach
from minisd.config import TINY
from minisd.errors import MinisdError
from minisd.fast import attention, compiled
from minisd.fast.compiled import CompiledUNet, compile_unet
from minisd.fast.passes import plain, quicken
from minisd.generate.__main__ import main
from minisd.unet import UNet

SMALL = replace(TINY, widths=(16, 32), depths=(1, 0), mid_depth=None, layers=1, heads=2, groups=4)
SIZES = [(16, 24), (8, 8), (24, 16), (17, 24), (12, 20), (32, 32), (40, 8), (9, 9)]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], None]]:
    """Sets what the compiler hands its graphs to."""
    def use(own: object) -> None:
        monkeypatch.setattr(compiled, "BACKEND", own)
        compiled.whole.cache_clear()
        torch._dynamo.reset()

    yield use
    compiled.whole.cache_clear()


def told(batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    return torch.randn(batch, 4, *size), torch.full((batch,), 500.0), torch.randn(batch, 7, SMALL.context_dim)


def adapted() -> UNet:
    """A UNet with a LoRA beside some of its linears."""
    unet = random_model(UNet, SMALL, 0).requires_grad_(False)
    spec = attach.LoRASpec("a", targets=("*_attn.*", "*.ff.out_proj"))
    draws = torch.Generator().manual_seed(0)
    for parameter in attach.attach(unet, spec, draws):
        parameter.requires_grad_(False).normal_(std=0.1, generator=draws)
    return unet


def test_one_graph_for_all_sizes_batches_and_strengths(backend: Callable[[object], None],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    backend(count)
    monkeypatch.setattr("minisd.fast.passes.worthwhile", lambda: True)
    monkeypatch.setattr(attention, "LARGE", 1 << 12)             # in pieces at some of the sizes
    fast, slow = compile_unet(quicken(adapted())), quicken(adapted())
    with torch.inference_mode():
        for (batch, size), strength in zip(product((2, 1), SIZES), [1.0, 1.0, 0.5, 0.0] * 4, strict=True):
            for unet in (fast, slow):
                attach.reweigh(unet, "a", strength)
            inputs = told(batch, size)
            assert difference(fast(*inputs), slow(*inputs)).relative < 1e-6
            assert len(graphs) == 1, f"another graph for {batch} of {size}"


@pytest.mark.slow
def test_what_the_compiler_makes_draws_the_same_and_can_be_had_back() -> None:
    unet, inputs = random_model(UNet, SMALL, 0).requires_grad_(False), told(2, (16, 8))
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        before = unet(*inputs)
        compile_unet(quicken(unet))
        assert difference(unet(*inputs), before).relative < 2e-5
        assert type(plain(unet)) is UNet and torch.equal(unet(*inputs), before)


def test_the_program_asks_the_compiled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[type] = []

    def traced(unet: UNet, *told: Tensor) -> Tensor:             # whatever the compiler makes of it
        calls.append(type(unet))
        return UNet.forward(unet, *told)

    monkeypatch.setattr(compiled, "whole", lambda: traced)
    options = ["a", "--steps", "2", "--cfg", "1", "--model", str(tiny_model.folder(tmp_path)), "--device", "cpu"]
    assert main([*options, "--out", str(tmp_path / "a"), "--compile"]) == 0 and calls == [CompiledUNet] * 2
    assert main([*options, "--out", str(tmp_path / "b")]) == 0 and len(calls) == 2
    a, b = (Image.open(tmp_path / name / "00001-0.png").tobytes() for name in "ab")
    assert a == b


def test_a_compiler_that_fails_is_told_in_a_sentence(backend: Callable[[object], None]) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        raise RuntimeError("no g++")

    backend(broken)
    with torch.inference_mode(), pytest.raises(MinisdError, match="could not be compiled"):
        compile_unet(random_model(UNet, SMALL, 0).requires_grad_(False))(*told(1, (8, 8)))
