"""Between the first call of the UNet and the last, the program never waits for the device.

On tensors that hold nothing every number that is asked for is an error, and copies between the devices are seen; on a
GPU, CUDA says itself where it is waited for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import tiny_model
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from watch import Watch

from minisd import devices, store
from minisd.drawing.canvas import canvas_of
from minisd.drawing.control import Fresh, Guide, Mask, Shortcuts, Start
from minisd.drawing.plan import Drawing
from minisd.drawing.walk import draw_latents
from minisd.images import album, fingerprint
from minisd.pipeline import StableDiffusion
from minisd.samplers import noise
from minisd.samplers.recipes import NAMES, sampler

STEPS = 4
SAMPLERS = [name for name in NAMES if not sampler(name).adaptive]
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
MASK = Image.new("L", PICTURE.size)
ImageDraw.Draw(MASK).ellipse((20, 17, 50, 40), fill=255)
GUIDES = {"plain": Guide(), "interval": Guide(interval=(0.5, 5.0)), "ramp": Guide(ramp=(1.0, 0.2)),
          "rescaled": Guide(rescale=0.7), "thresholded": Guide(threshold=0.99),
          "everything": Guide(ramp=(1.0, 0.5), interval=(0.1, 10.0), rescale=0.5, threshold=0.95)}


@pytest.fixture(params=["meta", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def sd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    """The tiny model on a device: "meta" has shapes alone."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and a PyTorch that was built for it")
    made = store.load(tiny_model.folder(tmp_path_factory.mktemp("nosync")), "cpu", "float32")
    for network in (made.unet, made.vae, *made.text):
        network.to(request.param)
    return made.ready()


@pytest.fixture
def walk(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    """Two drawings down to their latents, watched."""
    def watched(**changes: Any) -> Watch:
        first = replace(sd.drawing("a red apple", "blurry", STEPS, 5.0, size=PICTURE.size), **changes)
        drawings = [first, replace(first, prompt="a blue disc", seed=2 ** 40)]
        canvas = canvas_of(first, album(PICTURE, MASK)) if first.start else None
        watch = Watch(sd.unet.conv_in, calls(sd, first))      # which every call begins with, shortcuts included
        monkeypatch.setattr(noise, "sent", watch.send)
        with torch.inference_mode(), watch.watching() if sd.device.type == "meta" else unwaited(watch):
            x = draw_latents(sd, drawings, canvas, None)
        assert watch.called == watch.calls and x.shape == (2, 4, 8, 8) and x.device.type == sd.device.type
        return watch
    return watched


def calls(sd: StableDiffusion, drawing: Drawing) -> int:
    recipe, way = drawing.recipe(), drawing.walks()[0]
    return recipe.solver.calls(recipe.schedule(sd.cfg.noise, way.steps)[way.skipped:])


@contextmanager
def unwaited(watch: Watch) -> Iterator[None]:
    """CUDA raises where it is waited for, from the first call of the network to the last."""
    def before(*_: Any) -> None:
        watch.called += 1
        torch.cuda.set_sync_debug_mode("error" if watch.called < watch.calls else "default")

    handle = watch.network.register_forward_pre_hook(before)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        handle.remove()


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_waits(name: str, walk: Callable[..., Watch]) -> None:
    watch = walk(sampler=name)
    assert watch.seen == []


@pytest.mark.parametrize("name", ["euler a", "ddpm", "dpm++sde", "dpm++2m sde", "lcm"])
def test_noise_is_sent_on_the_way(name: str, walk: Callable[..., Watch]) -> None:
    assert walk(sampler=name).sent > 1


@pytest.mark.parametrize("name", GUIDES)
def test_no_guidance_waits(name: str, walk: Callable[..., Watch]) -> None:
    assert walk(guide=GUIDES[name]).seen == []


@pytest.mark.parametrize("shortcuts", [Shortcuts(reuse=2), Shortcuts(merge=0.5), Shortcuts(3, 0.3)], ids=str)
def test_no_shortcut_waits(shortcuts: Shortcuts, walk: Callable[..., Watch]) -> None:
    assert walk(shortcuts=shortcuts).seen == []


def test_neither_pictures_nor_churn_nor_changing_prompts_wait(walk: Callable[..., Watch]) -> None:
    start, mask = Start(fingerprint(PICTURE), 0.8), Mask(fingerprint(MASK))
    assert walk(start=start).seen == []
    assert walk(start=start, mask=mask, sampler="heun").seen == []
    assert walk(start=start, mask=mask, sampler="dpm++3m sde", guide=GUIDES["everything"]).seen == []
    assert walk(fresh=Fresh(churn=2.0), sampler="euler").seen == []
    assert walk(prompt="a [red:blue:0.5] apple", sampler="dpm++2m").seen == []


def test_an_adaptive_sampler_waits_and_is_seen(sd: StableDiffusion, walk: Callable[..., Watch]) -> None:
    """It chooses its steps by what it sees: the one that has to; and so the test can fail."""
    with pytest.raises(RuntimeError, match=r"meta|sync"):
        walk(sampler="dpm adaptive")


def test_a_copy_is_seen(sd: StableDiffusion) -> None:
    if sd.device.type != "meta":
        pytest.skip("CUDA sees for itself")
    network = nn.Identity()
    watch = Watch(network, 3)
    with watch.watching():
        for _ in range(3):
            network(torch.zeros(2)).to("meta")
        assert len(watch.seen) == 2 and "_to_copy" in watch.seen[0]
        network(torch.zeros(2)).to("meta")
        assert len(watch.seen) == 2


class Sheet:
    """What is done to a tensor, noted."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def pin_memory(self) -> "Sheet":
        self.done.append("pinned")
        return self

    def to(self, device: str, non_blocking: bool = False) -> "Sheet":
        self.done.append((device, non_blocking))
        return self


def test_what_is_sent_to_a_gpu_is_fetched_by_it() -> None:
    sheet = Sheet()
    devices.sent(cast(Tensor, sheet), "cuda:1")
    assert sheet.done == ["pinned", ("cuda:1", True)]
    assert torch.equal(devices.sent(torch.arange(3), "cpu"), torch.arange(3))
