"""LoRA files beside a pipeline: merged and undone to the bit, weighed by blocks, on pruned UNets, and compiled once."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from comparison import assert_close, random_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from minisd import attach, store, surgery
from minisd.adapters import add_lora, fitting, merge_loras, parts, remove_lora, side_of, weigh_lora
from minisd.config import BK_TINY, CLIP_L, SD15, TINY, TINY_MODEL, ModelConfig
from minisd.errors import MinisdError
from minisd.fast import beside
from minisd.fast.onednn import serves
from minisd.fast.passes import quicken
from minisd.lora import PLAIN, LowRank
from minisd.pipeline import StableDiffusion
from minisd.unet import UNet
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.read import read_adapter
from weights_convert.lora.write import write_adapter

KEYS = Path(__file__).parent / "goldens" / "keys"
STRENGTH = "0.8:te=0.5:in=0.25,1:mid=0:out=-0.5"
ALPHA = 3.0


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=generator)


def entry(place: Place, weight: Tensor, generator: torch.Generator) -> Entry:
    """Some of each kind: LoCon with a core and LoHa beside convolutions, LoKr beside gates, LoRA beside the rest."""
    out, rest, kernel = weight.shape[0], weight.shape[1:], weight.shape[2:]
    if place.path.endswith("conv2"):
        mid = random(generator, 2, 2, *kernel)
        return Entry("lora", {"down": random(generator, 2, rest[0], 1, 1), "mid": mid,
                              "up": random(generator, out, 2, 1, 1)}, ALPHA)
    if place.path.endswith("conv1"):
        shapes = {"w1_a": (out, 2), "w1_b": (2, rest.numel()), "w2_a": (out, 2), "w2_b": (2, rest.numel())}
        return Entry("loha", {role: random(generator, *shape) for role, shape in shapes.items()}, ALPHA)
    if place.path.endswith("ff.in_proj"):
        factors = {"w1": (2, 4), "w2_a": (out // 2, 3), "w2_b": (3, rest[0] // 4)}
        return Entry("lokr", {role: random(generator, *shape) for role, shape in factors.items()}, ALPHA)
    return Entry("lora", {"down": random(generator, 2, *rest),
                          "up": random(generator, out, 2, *[1] * len(kernel))}, ALPHA)


def adapter_of(models: dict[str, nn.Module], cfg: ModelConfig, seed: int) -> Adapter:
    """Something beside every Linear and convolution."""
    generator, entries = torch.Generator().manual_seed(seed), {}
    for part, model in models.items():
        for path in attach.targets(model, ("*",)):
            place = Place(part, path)
            entries[place] = entry(place, model.get_submodule(path).weight, generator)
    return Adapter(entries, cfg)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and two LoRAs of it."""
    path = tmp_path_factory.mktemp("adapters")
    model = tiny_model.folder(path)
    for seed, name in enumerate(("one", "two")):
        write_adapter(adapter_of(parts(store.load(model, "cpu", "float32")), tiny_model.MODEL, seed),
                      path / f"{name}.safetensors")
    return path


def bits(sd: StableDiffusion) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor.clone() for part, model in parts(sd).items()
            for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def answer(sd: StableDiffusion, quick: bool) -> tuple[Tensor, Tensor]:
    """Of the UNet and of the text encoder, as they are or as they draw."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator).to(sd.dtype)
    context = torch.randn(2, 5, sd.cfg.unet.context_dim, generator=generator).to(sd.dtype)
    label = torch.randn(2, sd.cfg.unet.label_dim or 0, generator=generator).to(sd.dtype)
    if quick:
        sd.ready()
    with torch.inference_mode(quick), torch.no_grad():
        return sd.unet(x, torch.tensor([3.0, 700.0]), context, label), sd.text[0](torch.arange(16)[None]).hidden


def strength_at(place: Place) -> float:
    """What STRENGTH says of a module."""
    stages = {"down.0": 0.25, "down.1": 1.0, "mid": 0.0, "up.0": -0.5, "up.1": -0.5}
    if place.part != "unet":
        return 0.5
    return next((value for begin, value in stages.items() if place.path.startswith(begin + ".")), 0.8)


@pytest.mark.parametrize("quick", [False, True], ids=["plain", "quickened"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_undone_and_taken_off_to_the_bit(folder: Path, dtype: str, quick: bool) -> None:
    sd = store.load(folder / "tiny", "cpu", dtype)
    before, first = bits(sd), answer(sd, quick)
    names = [add_lora(sd, folder / f"{name}.safetensors") for name in ("one", "two")]
    weigh_lora(sd, "one", STRENGTH)
    weigh_lora(sd, "two", 0.3)
    beside, worn = answer(sd, quick), bits(sd)
    assert not torch.equal(beside[0], first[0]) and not torch.equal(beside[1], first[1])
    merged = merge_loras(sd)
    assert not any(type(module) in PLAIN for model in parts(sd).values() for module in model.modules())
    assert bits(sd).keys() == before.keys()
    for found, expected in zip(answer(sd, quick), beside, strict=True):
        assert_close("merged", found, expected, {"float32": 2e-5, "bfloat16": 0.06}[dtype])
    merged.undo()
    assert all(map(torch.equal, answer(sd, quick), beside)) and same(bits(sd), worn)
    for name in names:
        remove_lora(sd, name)
    assert same(bits(sd), before) and all(map(torch.equal, answer(sd, quick), first))


@pytest.mark.skipif(not serves(torch.zeros(1)), reason="PyTorch was built without oneDNN")
def test_a_walk_adds_up_once_however_many_steps_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd, calls = store.load(folder / "tiny", "cpu", "float32"), []
    add_lora(sd, folder / "one.safetensors")

    def counted(*of: Any) -> beside.Sum:
        calls.append(1)
        return summed(*of)

    summed = beside.summed
    monkeypatch.setattr(beside, "summed", counted)
    found = {}
    for steps in (2, 6):
        calls.clear()
        sd.txt2img("a cat", steps=steps)
        found[steps] = len(calls)
    assert found[2] == found[6] > 0


def test_merged_weights_are_the_sums_by_their_strengths(folder: Path) -> None:
    sd = store.load(folder / "tiny", "cpu", "float32")
    add_lora(sd, folder / "one.safetensors", STRENGTH)
    before = {place: parts(sd)[place.part].get_submodule(place.path).weight.clone()
              for place in read_adapter(folder / "one.safetensors").entries}
    merge_loras(sd)
    for place, one in read_adapter(folder / "one.safetensors").entries.items():
        expected = before[place].double() + strength_at(place) * one.delta().double().reshape(before[place].shape)
        found = parts(sd)[place.part].get_submodule(place.path).weight
        assert_close(str(place), found.double(), expected, 1e-6)


def test_off_it_is_the_model_without_to_the_bit(folder: Path) -> None:
    sd = store.load(folder / "tiny", "cpu", "float32")
    first = answer(sd, False)
    add_lora(sd, folder / "one.safetensors", 0)
    assert all(map(torch.equal, answer(sd, False), first))
    add_lora(sd, folder / "two.safetensors", 1)
    weigh_lora(sd, "two", {"unet does not have this": 1})
    assert all(map(torch.equal, answer(sd, False), first))
    with pytest.raises(MinisdError, match="attached already"):
        add_lora(sd, folder / "one.safetensors")
    with pytest.raises(MinisdError, match="attached: one, two"):
        remove_lora(sd, "three")


def test_loras_may_be_put_on_in_inference_mode(folder: Path) -> None:
    sd = store.load(folder / "tiny", "cpu", "float32")
    first = answer(sd, True)
    with torch.inference_mode():
        names = [add_lora(sd, folder / f"{name}.safetensors") for name in ("one", "two")]
    beside = answer(sd, True)
    with torch.inference_mode():
        merged = merge_loras(sd)
    assert not any(tensor.is_inference() for tensor in bits(sd).values())
    assert_close("merged", answer(sd, True)[0], beside[0], 2e-5)
    merged.undo()
    assert torch.equal(answer(sd, True)[0], beside[0])
    with torch.inference_mode():
        for name in names:
            remove_lora(sd, name)
    assert torch.equal(answer(sd, True)[0], first[0])


# --- pruned UNets ---


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet, Path]:
    """A UNet of four stages, and a LoRA's file that lists it as its model."""
    unet, path = random_model(UNet, TINY, 0).requires_grad_(False), tmp_path_factory.mktemp("teacher")
    write_adapter(adapter_of({"unet": unet}, replace(TINY_MODEL, unet=TINY), 1), path / "whole.safetensors")
    return unet, path / "whole.safetensors"


@pytest.mark.parametrize("cut", surgery.NAMES)
def test_a_lora_of_the_teacher_on_its_students(teacher: tuple[UNet, Path], cut: str) -> None:
    """Cut and then adapted is adapted and then cut: every block wears what its teacher's block would."""
    unet, file = teacher
    cfg = surgery.student(TINY, [cut])
    student = surgery.transplant(unet, cfg)
    adapter = fitting(file, replace(TINY_MODEL, unet=cfg), {"unet": student}, allow_unused=True)
    attach.put(student, "whole", {path: side_of(one, student.get_submodule(path))
                                  for path, one in adapter.of("unet").items()})
    assert set(adapter.of("unet")) == set(attach.targets(student, ("*",)))
    attach.merge(student)
    attach.put(unet, "whole", {path: side_of(one, unet.get_submodule(path))
                               for path, one in read_adapter(file).of("unet").items()})
    merged = attach.merge(unet)
    expected = surgery.transplant(unet, cfg).state_dict()
    merged.undo()
    attach.detach(unet, "whole")
    assert same(student.state_dict(), expected)
    with pytest.raises(MinisdError, match="--allow-unused"):
        fitting(file, replace(TINY_MODEL, unet=cfg), {"unet": student})


def test_a_real_lora_of_sd15_on_bk_tiny(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the keys of a file as kohya's trainer writes it: 9 of the 16 transformers are there, with 12 modules each."""
    shapes = json.loads(gzip.decompress((KEYS / "lora-kohya.json.gz").read_bytes()))
    save_file({key: torch.ones([1 if n == -1 else n for n in shape], dtype=torch.float16)
               for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    cfg = ModelConfig(unet=BK_TINY, text=(CLIP_L,))
    models = store.blank(cfg, ("unet", "text"))
    adapter = fitting(tmp_path / "a.safetensors", cfg, models, allow_unused=True)
    assert len(adapter.of("unet")) == 9 * 12 and len(adapter.of("text")) == 72
    assert "84 of 264 modules of the LoRA are not in the model" in caplog.text
    origins = surgery.origins(SD15, BK_TINY)
    assert origins["up.0.attn.1"] == "up.1.attn.2" and "up.0.attn.1.proj_in" in adapter.of("unet")


# --- compiled ---


def sides(unet: UNet, seed: int, alpha: float) -> dict[str, LowRank]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for path in attach.targets(unet, ("*_attn.*", "*.conv1", "*.proj_in")):
        out, *rest = unet.get_submodule(path).weight.shape
        found[path] = LowRank(random(generator, 2, *rest), random(generator, out, 2, *[1] * (len(rest) - 1)),
                              alpha).requires_grad_(False)
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("quick", [False, True], ids=["plain", "quickened"])
def test_no_change_of_a_lora_compiles_anew(quick: bool, fresh: None) -> None:
    """Of its strength, on and off, by blocks; and of the LoRA itself, for one of the same shapes and name."""
    cfg = replace(TINY, widths=(16, 32), depths=(0, 1), layers=1)
    unet, counter = random_model(UNet, cfg, 0).requires_grad_(False), CompileCounter()
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, cfg.context_dim)
    compiled = torch.compile(unet, fullgraph=True, backend=counter)
    answers = []

    def ask() -> None:
        if quick:
            quicken(unet)
        with torch.inference_mode():
            answers.append(compiled(x, t, context))
            assert torch.equal(answers[-1], unet(x, t, context))

    attach.put(unet, "slot", sides(unet, 0, 2.0))
    ask()
    for strength in (0.0, 0.5, -1.0, {"down.*": 1.0, "up.1.*": 0.3}):
        attach.reweigh(unet, "slot", strength)
        ask()
    attach.detach(unet, "slot")
    attach.put(unet, "slot", sides(unet, 1, 5.0))
    ask()
    assert counter.frame_count == 1
    assert len({one.numpy().tobytes() for one in answers}) == len(answers)
