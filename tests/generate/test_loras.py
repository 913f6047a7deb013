"""LoRAs from the command line, from prompts and in grids: the pictures, what they say, and all that is refused."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sd_parsers import ParserManager

from minisd import attach, store
from minisd.adapters import parts, taken
from minisd.drawing import metadata
from minisd.drawing.tags import Lora, Strength
from minisd.generate.__main__ import main
from weights_convert.lora.write import write_adapter

Draw = Callable[..., int]
FAST = ("--steps", "2", "--dtype", "float32")
TARGETS = {"unet": ("*_attn.*", "*.ff.*", "*.conv1"), "text": ("*.attn.*",)}


@pytest.fixture(scope="session")
def shelf(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRAs of the tiny model: `style` and `face`, which touch all parts."""
    folder = tmp_path_factory.mktemp("shelf")
    sd = store.load(model, "cpu", "float32")
    for n, name in enumerate(("style", "face")):
        for part, module in parts(sd).items():
            generator = torch.Generator().manual_seed(n)
            attach.attach(module, attach.LoRASpec(name, 2, 3.0, TARGETS[part]), generator)
            for parameter in attach.parameters(module, name):
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        write_adapter(taken(sd, name), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def at(draw: Draw, shelf: Path) -> Draw:
    """The program, told where LoRAs are."""
    return lambda *args: draw(*args, *FAST, "--lora-dir", str(shelf))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def drawn(out: Path) -> list[np.ndarray]:
    return [pixels(path) for path in sorted(out.glob("0000*.png")) if "grid" not in path.name]


def test_a_picture_and_what_it_says(at: Draw, out: Path, shelf: Path) -> None:
    file = shelf / "style.safetensors"
    assert at("a cat") == 0
    assert at("a cat", "--lora", f"{file}:0.8", "--lora", "face:0.25:0.5:out=1,0") == 0
    assert at("a <lora:style:0.8>cat <lora:face:0.25:0.5:out=1,0>") == 0
    plain, first, second = drawn(out)
    assert not np.array_equal(plain, first) and np.array_equal(first, second)
    said = [metadata.read_drawn(out / f"0000{n}-0.png").drawing for n in (1, 2, 3)]
    assert said[1] == said[2] == replace(said[0], loras=said[1].loras)
    body = file.read_bytes()
    tensors = hashlib.sha256(body[8 + int.from_bytes(body[:8], "little"):]).hexdigest()
    assert said[1].loras[0] == Lora("style", hashlib.sha256(body).hexdigest(), tensors[:12], Strength(0.8, 0.8))
    assert said[1].loras[1].strength == Strength(0.25, 0.5, (), None, (1, 0))
    with Image.open(out / "00002-0.png") as image:
        text = image.text["parameters"]
    assert text.startswith("a cat <lora:style:0.8> <lora:face:0.25:0.5:out=1,0>\n")
    assert f'Lora hashes: "style: {tensors[:12]}, face: {said[1].loras[1].hash}", ' in text


def test_another_reader_finds_the_prompt_with_its_tags(at: Draw, out: Path) -> None:
    assert at("a cat", "--lora", "style:0.8") == 0
    found = ParserManager().parse(out / "00001-0.png")
    assert found.full_prompt == "a cat <lora:style:0.8>"
    assert found.metadata["Version"].startswith("minisd") and found.samplers[0].parameters["seed"] == "0"


def test_each_strength_is_another_picture(at: Draw, out: Path) -> None:
    ways = ["1", "0.5", "-1", "1:te=0", "1:unet=0", "1:in=0", "1:mid=0", "1:out=0", "1:in=0,1"]
    assert at(*(f"a cat <lora:style:{way}>" for way in ways)) == 0
    found = drawn(out)
    assert len({picture.tobytes() for picture in found}) == len(ways)


def test_strength_0_is_no_lora_to_the_bit(at: Draw, out: Path) -> None:
    assert at("a cat", "a cat <lora:style:0>") == 0
    plain, off = drawn(out)
    assert np.array_equal(plain, off)


def test_a_picture_is_the_same_whatever_it_is_drawn_beside(at: Draw, model: str, shelf: Path, out: Path,
                                                           tmp_path: Path) -> None:
    prompts = ["a cat", "a cat <lora:style:1>", "a dog <lora:style:0.5>", "a cat <lora:face:1><lora:style:1>",
               "a cat <lora:style:1><lora:face:1>", "a cat <lora:face:1>", "a dog"]
    assert at(*prompts) == 0
    together = drawn(out)
    for n, prompt in enumerate(prompts):
        alone = tmp_path / str(n)
        assert main([prompt, *FAST, "--lora-dir", str(shelf), "--model", model, "--out", str(alone), "--device",
                     "cpu"]) == 0
        assert np.array_equal(*drawn(alone), together[n]), prompt


def test_a_list_goes_on_where_it_stopped(at: Draw, out: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "prompts.txt").write_text("a cat <lora:style:1>\na cat <lora:style:0.5>\na cat\n")
    ask = ("--prompts", str(tmp_path / "prompts.txt"))
    assert at(*ask) == 0
    before = drawn(out)
    (out / "00002-0.png").unlink()
    capsys.readouterr()
    assert at(*ask) == 0
    assert "2 of 3 pictures" in capsys.readouterr().err
    assert [picture.tobytes() for picture in drawn(out)] == [picture.tobytes() for picture in before]


# --- drawn again ---


@pytest.fixture
def picture(at: Draw, out: Path) -> Path:
    assert at("a cat <lora:face:0.3>", "--lora", "style:0.8:te=0.5:in=0,1") == 0
    return out / "00001-0.png"


def test_drawn_again(at: Draw, picture: Path, out: Path) -> None:
    assert at("--from-image", str(picture)) == 0
    again = out / "00002-0.png"
    assert np.array_equal(pixels(picture), pixels(again))
    assert metadata.read_drawn(picture) == metadata.read_drawn(again)
    assert at("--from-image", str(picture), "--lora", "style:0.1") == 0
    assert [str(one) for one in metadata.read_drawn(out / "00003-0.png").drawing.loras] == ["style:0.1"]


def test_not_when_the_file_is_gone(draw: Draw, picture: Path, tmp_path: Path, capsys) -> None:
    assert draw("--from-image", str(picture), "--lora-dir", str(tmp_path)) == 3
    assert "no LoRA is called 'style'" in capsys.readouterr().err


def test_not_when_its_content_is_another(draw: Draw, picture: Path, shelf: Path, tmp_path: Path, capsys) -> None:
    save_file(load_file(shelf / "style.safetensors"), tmp_path / "style.safetensors")      # metadata lost
    (tmp_path / "face.safetensors").write_bytes((shelf / "face.safetensors").read_bytes())
    assert draw("--from-image", str(picture), "--lora-dir", str(tmp_path)) == 3
    assert "'style' is not the one that the picture was drawn with" in capsys.readouterr().err


# --- grids ---


def test_a_grid_of_strengths_and_of_loras(at: Draw, out: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        '[options]\nprompt = "a cat <lora:face:W>"\n'
        '[x]\noption = "lora"\nvalues = ["", "style:0.5", ["style:1:te=0"]]\n'
        '[y]\noption = "prompt"\nsearch = "W"\nvalues = ["0.5", "1"]\n')
    assert at("--grid", str(tmp_path / "grid.toml")) == 0
    assert (out / "grid.png").exists() and len({one.tobytes() for one in drawn(out)}) == 6
    said = [metadata.read_drawn(out / f"0000{n}-0.png").drawing.loras for n in range(1, 7)]
    assert [" ".join(map(str, one)) for one in said] == [
        "face:0.5", "style:0.5 face:0.5", "style:0:1 face:0.5", "face:1", "style:0.5 face:1", "style:0:1 face:1"]
    assert drawn(out)[4].tobytes() != drawn(out)[1].tobytes()


def test_a_grid_whose_lora_is_not_there(at: Draw, out: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "grid.toml").write_text('[options]\nprompt = "a"\n[x]\noption = "lora"\nvalues = ["stile"]\n')
    assert at("--grid", str(tmp_path / "grid.toml")) == 3
    told = capsys.readouterr().err
    assert "grid.toml" in told and "no LoRA is called 'stile'" in told and "near: style" in told


# --- refused, before the model is loaded ---


@pytest.mark.parametrize(("args", "code", "told"), [
    (("a <lora:stile:1>",), 3, "near: style"),
    (("a <lora:style:x>",), 2, "style:x"),
    (("a <lora:style:1:dyn=3>",), 2, "none of te=NUMBER"),
    (("a <lora:../style:1>",), 2, "leads elsewhere"),
    (("a", "--lora", "nothing.safetensors"), 3, "looked for"),
    (("a", "--lora", "style:500"), 2, "-100 to 100"),
    (("a <lora:style:1>", "--lora", "style:0.5"), 2, "given twice"),
    (("a", "-n", "b <lora:style:1>"), 2, "negative prompt"),
    (("a", "--lora", "style:1:in=1,1,1"), 2, "the UNet has 2 stages"),
])
def test_refused(at: Draw, monkeypatch, capsys, args, code, told) -> None:
    monkeypatch.setattr("minisd.generate.source.load", lambda *_: pytest.fail("the model was loaded"))
    assert at(*args) == code
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) <= 6 and "Traceback" not in error


def test_a_folder_is_no_lora_but_may_hold_some(draw: Draw, shelf: Path, capsys) -> None:
    assert draw("a", "--lora", str(shelf)) == 3
    assert f"near: {shelf / 'face.safetensors'}, {shelf / 'style.safetensors'}" in capsys.readouterr().err


def changed(shelf: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """`style`, changed."""
    tensors = load_file(shelf / "style.safetensors")
    change(tensors)
    save_file(tensors, target / "bad.safetensors")
    return str(target / "bad.safetensors")


def first(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(key for key in tensors if key.endswith(end))


FAULTS = {                                        # B1 and B3: what is done to a file, the exit code, what is told
    "another family": (lambda t: [t.__setitem__(key.replace("blocks_", "blocks_7"), t.pop(key)) for key in list(t)],
                       3, "belongs to another model"),
    "another width": (lambda t: [t.__setitem__(key, torch.ones(2, 99)) for key in t if key.endswith("down.weight")
                                 and "attn2_to_k" in key], 3, "text states of 99 numbers"),
    "up without its down": (lambda t: t.pop(first(t, "lora_down.weight")), 3, "is not whole"),
    "ranks that differ": (lambda t: t.__setitem__(first(t, "lora_up.weight"), torch.ones(32, 5)), 3,
                          "do not fit together"),
    "alpha NaN": (lambda t: t.__setitem__(first(t, "alpha"), torch.tensor(float("nan"))), 5, "alpha of nan"),
    "a NaN": (lambda t: t[first(t, "lora_up.weight")].fill_(float("nan")), 5, "NaN"),
    "an unknown key": (lambda t: t.__setitem__("what.is_this", torch.ones(1)), 3, "what.is_this"),
    "norms": (lambda t: t.__setitem__("lora_unet_conv_in.w_norm", torch.ones(1)), 3, "norms, which are not read"),
    "an embedding": (lambda t: (t.clear(), t.__setitem__("emb_params", torch.ones(2, 32))), 3, "by --embedding"),
    "no LoRA": (lambda t: (t.clear(), t.__setitem__("a.weight", torch.ones(1, 1, 1))), 3, "not a LoRA that is known"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused(at: Draw, shelf: Path, tmp_path: Path, monkeypatch, capsys, fault: str) -> None:
    change, code, told = FAULTS[fault]
    monkeypatch.setattr("minisd.generate.source.load", lambda *_: pytest.fail("the model was loaded"))
    assert at("a", "--lora", changed(shelf, tmp_path, change)) == code
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) <= 6 and "Traceback" not in error


def test_without_alpha_it_is_the_rank(at: Draw, shelf: Path, tmp_path: Path, out: Path) -> None:
    def without(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.endswith("alpha")]:
            del tensors[key]

    def equal(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {key: torch.tensor(2.0) for key in tensors if key.endswith("alpha")}

    for change in (without, equal):
        assert at("a", "--lora", changed(shelf, tmp_path, change)) == 0
    assert np.array_equal(*drawn(out))


# --- B4: the names say nothing of the picture ---


def test_a_lora_in_every_dialect_draws_the_same_picture_to_the_bit(at: Draw, model: str, out: Path, tmp_path: Path,
                                                                   capsys) -> None:
    sd = store.load(model, "cpu", "float32")
    for part, module in parts(sd).items():        # what the attention processors of 2022 could say
        patterns = {"unet": ("*_attn.*",), "text": ("*.attn.*",)}[part]
        attach.attach(module, attach.LoRASpec("style", 2, 4.0, patterns), torch.Generator().manual_seed(0))
        for parameter in attach.parameters(module, "style"):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    dialects = ("kohya", "diffusers", "diffusers-old")
    for dialect in dialects:
        write_adapter(taken(sd, "style"), tmp_path / f"{dialect}.safetensors", dialect)
        assert at("a cat", "--lora", str(tmp_path / f"{dialect}.safetensors")) == 0
    assert at("a cat") == 0
    first, *others, plain = drawn(out)
    assert all(np.array_equal(first, other) for other in others) and not np.array_equal(first, plain)


def test_a_cut_file_is_refused(at: Draw, shelf: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "cut.safetensors").write_bytes((shelf / "style.safetensors").read_bytes()[:-100])
    assert at("a", "--lora", str(tmp_path / "cut.safetensors")) == 3
    assert "cut off" in capsys.readouterr().err


# --- B2: pruned UNets take what they have ---


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with two blocks a stage, its LoRA, and students: without the mid block, with one block a stage."""
    folder = tmp_path_factory.mktemp("pruned")
    whole = replace(tiny_model.MODEL, unet=replace(tiny_model.MODEL.unet, layers=2))
    cut = {"whole": whole, "midless": replace(whole, unet=replace(whole.unet, mid_depth=None)),
           "bk": replace(whole, unet=replace(whole.unet, layers=1))}
    for name, cfg in cut.items():
        store.save(folder / name, cfg, tiny_model.modules(cfg))
    sd = store.load(folder / "whole", "cpu", "float32")
    attach.attach(sd.unet, attach.LoRASpec("style", 2, targets=("*_attn.*",)), torch.Generator().manual_seed(0))
    for parameter in attach.parameters(sd.unet, "style"):
        torch.nn.init.normal_(parameter.data, 0, 0.3, generator=torch.Generator().manual_seed(1))
    write_adapter(taken(sd, "style"), folder / "style.safetensors")
    return {name: folder / name for name in (*cut, "style.safetensors")}


@pytest.mark.parametrize("name", ["midless", "bk"])
def test_a_pruned_unet_takes_what_it_has(pruned, name: str, out: Path, capsys) -> None:
    def at(*args: str) -> int:
        return main(["a", *FAST, "--model", str(pruned[name]), "--out", str(out), "--device", "cpu", *args])

    lora = ("--lora", str(pruned["style.safetensors"]))
    assert at(*lora) == 3
    told = capsys.readouterr().err
    assert "belongs to another model" in told and "--allow-unused" in told
    assert at() == 0 and at(*lora, "--allow-unused") == 0
    assert "of the LoRA are not in the model and are left out: unet " in capsys.readouterr().err
    assert not np.array_equal(*drawn(out))
