"""Textual inversions from the command line and in grids, and LoRAs that bring words: pictures, records, refusals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minisd import attach, store
from minisd.adapters import add_lora, remove_lora, taken
from minisd.drawing import metadata
from minisd.generate.__main__ import main
from minisd.words import add_embedding
from weights_convert.lora.write import write_adapter

Draw = Callable[..., int]
FAST = ("--steps", "2", "--dtype", "float32")
WIDTH = tiny_model.MODEL.text[0].width


def vectors(seed: int, count: int = 2) -> torch.Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def shelf(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A1111's `sks` and `bad-hands`, diffusers' <cat>, and a LoRA that brings two words."""
    folder = tmp_path_factory.mktemp("shelf")
    for n, name in enumerate(("sks", "bad-hands")):
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(n)}, "name": "x"},
                   folder / f"{name}.pt")
    torch.save({"<cat>": vectors(3, 1)[0]}, folder / "learned_embeds.bin")
    sd = store.load(model, "cpu", "float32")
    attach.attach(sd.unet, attach.LoRASpec("style", 2, targets=("*_attn.*",)), torch.Generator().manual_seed(0))
    for parameter in attach.parameters(sd.unet, "style"):
        torch.nn.init.normal_(parameter.data, 0, 0.3, generator=torch.Generator().manual_seed(1))
    write_adapter(taken(sd, "style"), folder / "plain.safetensors")
    words = {"bundle_emb.Inky.string_to_param.*": vectors(4), "<s1>": vectors(5, 1)[0]}
    save_file(load_file(folder / "plain.safetensors") | words, folder / "style.safetensors")
    return folder


@pytest.fixture
def at(draw: Draw, shelf: Path) -> Draw:
    """The program, told where embeddings and LoRAs are."""
    return lambda *args: draw(*args, *FAST, "--lora-dir", str(shelf))


def drawn(out: Path) -> list[np.ndarray]:
    found = []
    for path in sorted(out.glob("0000*.png")):
        if "grid" not in path.name:
            with Image.open(path) as image:
                found.append(np.asarray(image))
    return found


def said(out: Path, number: int) -> metadata.Drawn:
    return metadata.read_drawn(out / f"0000{number}-0.png")


def test_its_word_is_said_by_file_and_by_name_and_recorded(at: Draw, shelf: Path, out: Path, model: str) -> None:
    assert at("a sks disc") == 0
    assert at("a sks disc", "--embedding", str(shelf / "sks.pt")) == 0
    assert at("a sks disc", "a disc", "a (SKS:1.2) disc", "--embedding", "sks", "--embedding", "bad-hands") == 0
    assert at("a disc", "-n", "bad-hands", "--embedding", "bad-hands") == 0
    unknown, first, again, without, heavier, negative = drawn(out)
    assert not np.array_equal(unknown, first) and np.array_equal(first, again)
    assert len({one.tobytes() for one in (first, without, heavier, negative)}) == 4
    names = [[one.name for one in said(out, n).drawing.embeddings] for n in (1, 2, 3, 4, 5, 7)]
    assert names == [[], ["sks"], ["sks"], [], ["sks"], ["bad-hands"]]
    sd = store.load(model, "cpu", "float32")
    add_embedding(sd, shelf / "sks.pt")
    (expected,) = sd.draw([said(out, 2).drawing])
    assert np.array_equal(np.asarray(expected), first)
    with Image.open(out / "00002-0.png") as image:
        assert f'TI hashes: "sks: {said(out, 2).drawing.embeddings[0].sha256[:12]}"' in image.text["parameters"]


def test_a_file_that_says_its_word(at: Draw, out: Path) -> None:
    assert at("a <cat>", "a learned_embeds", "--embedding", "learned_embeds") == 0
    assert np.array_equal(*drawn(out))


def test_a_word_that_nobody_says_is_told(at: Draw, out: Path, capsys) -> None:
    assert at("a cat", "--embedding", "learned_embeds") == 0
    assert "no prompt says its word, <cat> or learned_embeds" in capsys.readouterr().err


def test_a_picture_is_the_same_whatever_it_is_drawn_beside(at: Draw, shelf: Path, model: str, out: Path,
                                                           tmp_path: Path) -> None:
    prompts = ["a sks", "an inky disc", "an inky <lora:style:1> disc", "a disc", "a <s1> <lora:style:1> sks"]
    given = ("--embedding", "sks", "--lora-dir", str(shelf))
    assert at(*prompts, *given) == 0
    together = drawn(out)
    assert len({one.tobytes() for one in together}) == len(prompts)
    for n, prompt in enumerate(prompts):
        alone = tmp_path / str(n)
        assert main([prompt, *FAST, *given, "--model", model, "--out", str(alone), "--device", "cpu"]) == 0
        assert np.array_equal(drawn(alone)[0], together[n]), prompt


def test_a_loras_words_come_and_go_with_it(shelf: Path, model: str) -> None:
    sd = store.load(model, "cpu", "float32")
    drawing = sd.drawing("an inky disc", steps=2)
    before = np.asarray(sd.draw([drawing])[0])
    for _ in range(2):
        name = add_lora(sd, shelf / "style.safetensors", 0)
        assert [(word.text, word.vectors, word.lora) for word in sd.text[0].cfg.words] == [
            ("<s1>", 1, "style"), ("inky", 2, "style")]
        assert not np.array_equal(np.asarray(sd.draw([drawing])[0]), before)
        remove_lora(sd, name)
        assert sd.text[0].cfg.words == () and sd.text[0].token.extra is None
        assert np.array_equal(np.asarray(sd.draw([drawing])[0]), before)


# --- drawn again ---


def test_drawn_again_or_told_what_is_missing(at: Draw, draw: Draw, shelf: Path, out: Path, tmp_path: Path,
                                             capsys) -> None:
    assert at("a sks disc", "--embedding", "sks") == 0
    picture = ("--from-image", str(out / "00001-0.png"))
    assert at(*picture) == 0
    assert np.array_equal(*drawn(out)) and said(out, 1) == said(out, 2)
    assert draw(*picture, "--lora-dir", str(tmp_path)) == 3
    told = capsys.readouterr().err
    assert "no embedding is called 'sks'" in told and "by --embedding" in told
    assert draw(*picture, "--embedding", str(shelf / "sks.pt")) == 0
    assert np.array_equal(drawn(out)[0], drawn(out)[2])
    torch.save({"*": vectors(9)}, tmp_path / "sks.pt")
    assert draw(*picture, "--lora-dir", str(tmp_path)) == 3
    assert "'sks' is not the one that the picture was drawn with" in capsys.readouterr().err


def test_a_grid_with_and_without(at: Draw, out: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text('[options]\nprompt = "a sks bad-hands disc"\n[x]\noption = "embedding"\n'
                                        'values = ["", "sks", ["sks", "bad-hands"]]\n')
    assert at("--grid", str(tmp_path / "grid.toml")) == 0
    assert len({one.tobytes() for one in drawn(out)}) == 3
    assert [len(said(out, n).drawing.embeddings) for n in (1, 2, 3)] == [0, 1, 2]


def test_explained(at: Draw, capsys) -> None:
    assert at("a sks disc", "--explain", "--embedding", "sks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "6 of 14 tokens" in lines[2]
    assert sum(line.endswith("  sks") for line in lines) == 2      # its two vectors


# --- refused, before the model is loaded ---


@pytest.mark.parametrize(("args", "code", "told"), [
    (("a", "--embedding", "skz"), 3, "near: sks"),
    (("a", "--embedding", "../sks"), 2, "leads elsewhere"),
    (("a", "--embedding", "nothing.pt"), 3, "looked for"),
    (("a", "--embedding", "sks", "--embedding", "sks.pt"), 2, "given twice"),
    (("a", "--embedding", "plain"), 3, "LoRAs go to --lora"),
])
def test_refused(at: Draw, monkeypatch, capsys, args, code, told) -> None:
    monkeypatch.setattr("minisd.generate.source.load", lambda *_: pytest.fail("the model was loaded"))
    assert at(*args) == code
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) <= 6 and "Traceback" not in error


@pytest.mark.parametrize(("file", "told"), [
    ("sks.pt", ("a textual inversion", "--embedding")), ("learned_embeds.bin", ("a textual inversion", "--embedding")),
    ("plain.safetensors", ("a LoRA", "--lora")), ("style.safetensors", ("a LoRA", "--lora"))])
def test_no_model_but_called_by_its_name_and_its_option(shelf: Path, tmp_path: Path, capsys, file, told) -> None:
    options = ("a cat", "--model", str(shelf / file), "--out", str(tmp_path), *FAST)
    assert main([*options, "--device", "cpu"]) == 3
    error = capsys.readouterr().err
    assert all(words in error for words in told) and len(error.splitlines()) <= 6 and "Traceback" not in error


FAULTS = {                                        # B6: what a file holds, the exit code, what is told
    "of another width": ({"*": torch.ones(2, 768)}, 3, "768 numbers (SD1); this model's have 32"),
    "NaN": ({"*": torch.full((2, WIDTH), torch.nan)}, 5, "NaN or infinity"),
    "two words": ({"<a>": vectors(0), "<b>": vectors(0)}, 3, "holds 2 tensors"),
    "no rows": ({"*": torch.ones(0, WIDTH)}, 3, "not an embedding"),
    "whole numbers": ({"*": torch.ones(2, WIDTH, dtype=torch.int64)}, 3, "int64"),
    "a callback": ({"*": print}, 3, "no tensors in it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused(draw: Draw, tmp_path: Path, monkeypatch, capsys, fault: str) -> None:
    content, code, told = FAULTS[fault]
    monkeypatch.setattr("minisd.generate.source.load", lambda *_: pytest.fail("the model was loaded"))
    torch.save(content, tmp_path / "my-word.pt")
    assert draw("a my-word", *FAST, "--embedding", str(tmp_path / "my-word.pt")) == code
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) <= 6 and "Traceback" not in error


def test_a_name_that_is_a_word_already_and_a_word_of_two_files(at: Draw, draw: Draw, shelf: Path, tmp_path: Path,
                                                               capsys) -> None:
    torch.save({"*": vectors(0)}, tmp_path / "a.pt")
    assert draw("a", "--embedding", str(tmp_path / "a.pt")) == 3
    assert "knows the word 'a' already" in capsys.readouterr().err
    torch.save({"inky": vectors(0)}, tmp_path / "b.pt")
    assert at("an inky disc", "--lora", "style", "--embedding", str(tmp_path / "b.pt")) == 2
    assert "the word 'inky' is taught twice" in capsys.readouterr().err
