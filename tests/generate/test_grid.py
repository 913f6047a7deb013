"""Grids: a cell is a picture of its options, drawn once; sheets are written anew; faults are told at once."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from PIL import Image

from minisd import images, labels, store
from minisd.drawing import metadata
from minisd.generate import sheets
from minisd.generate.__main__ import main
from minisd.pipeline import StableDiffusion

STEPS = """
[options]
prompt = "a red apple"
seed = 7
size = "64x64"
[x]
option = "steps"
values = [1, 2, 3]
[y]
option = "sampler"
values = ["euler", "ddim"]
"""


@pytest.fixture
def grid(tmp_path: Path):
    """A grid's file."""
    def write(text: str, name: str = "test.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)
    return write


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many pictures each call has drawn."""
    seen, plain = [], StableDiffusion.draw

    def counted(self, drawings, *rest):
        seen.append(len(drawings))
        return plain(self, drawings, *rest)

    monkeypatch.setattr(StableDiffusion, "draw", counted)
    return seen


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def drawings(out: Path):
    return [metadata.read_drawn(path).drawing for path in sorted(out.glob("0*.png"))]


def test_cells_are_pictures_and_the_sheet_shows_them_in_place(draw, out, grid, capsys) -> None:
    assert draw("--grid", grid(STEPS)) == 0
    assert names(out) == [f"0000{n}-7.png" for n in range(1, 7)] + ["test.png"]
    assert [(one.sampler, one.steps) for one in drawings(out)] == [(name, n) for name in ("euler", "ddim")
                                                                    for n in (1, 2, 3)]
    assert {(one.prompt, one.seed, one.width) for one in drawings(out)} == {("a red apple", 7, 64)}
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "test.png")
    sheet = np.asarray(images.open_picture(out / "test.png"))
    right, bottom = sheet.shape[1], sheet.shape[0]
    for n, path in enumerate(sorted(out.glob("0*.png"))):
        x = right - (3 - n % 3) * 64 - (2 - n % 3) * labels.GAP
        y = bottom - (2 - n // 3) * 64 - (1 - n // 3) * labels.GAP
        assert np.array_equal(sheet[y:y + 64, x:x + 64], np.asarray(images.open_picture(path)))


def test_a_cell_is_what_the_program_draws_without_a_grid(draw, out, grid) -> None:
    assert draw("--grid", grid(STEPS)) == 0
    assert draw("a red apple", "--seed", "7", "--steps", "3", "--sampler", "ddim") == 0
    assert metadata.read_drawn(out / "00006-7.png") == metadata.read_drawn(out / "00007-7.png")
    assert (out / "00006-7.png").read_bytes() == (out / "00007-7.png").read_bytes()


def test_what_is_there_is_not_drawn_again(draw, out, grid, calls, capsys) -> None:
    assert draw("--grid", grid(STEPS)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sum(calls) == 6
    calls.clear()
    (out / "test.png").unlink()
    assert draw("--grid", grid(STEPS)) == 0
    assert calls == [] and {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "6 of 6 pictures are in" in capsys.readouterr().err
    (out / "00004-7.png").unlink()
    (out / "00002-7.png").write_bytes(before["00002-7.png"][:-20])                # cut off in the middle
    assert draw("--grid", grid(STEPS)) == 0
    assert sum(calls) >= 1 and (out / "00004-7.png").read_bytes() == before["00004-7.png"]


def test_a_larger_grid_draws_what_is_new(draw, out, grid, calls) -> None:
    assert draw("--grid", grid(STEPS)) == 0
    calls.clear()
    assert draw("--grid", grid(STEPS.replace("[1, 2, 3]", "[1, 4]").replace('"ddim"]', '"ddim", "ddpm"]'))) == 0
    assert sum(calls) == 4 and len(drawings(out)) == 10


def test_other_weights_or_dtypes_are_other_cells(draw, out, grid, calls) -> None:
    small = STEPS[:STEPS.index("[y]")]
    assert draw("--grid", grid(small), "--dtype", "float32") == 0
    assert draw("--grid", grid(small), "--dtype", "bfloat16") == 0
    assert sum(calls) == 6


def test_three_axes_make_pages_and_words_are_replaced(draw, out, grid) -> None:
    text = '''
    [x]
    option = "prompt"
    search = "red"
    values = ["red", "green"]
    [y]
    option = "cfg"
    values = [1, 3.5]
    [z]
    option = "prompt"
    values = ["a red apple", "a red car"]
    '''
    assert draw("--grid", grid(text, "words.toml"), "--steps", "1") == 0
    assert names(out)[8:] == ["words-1.png", "words-2.png"]
    assert [(one.prompt, one.guidance) for one in drawings(out)] == [
        (f"a {colour} {thing}", cfg) for thing in ("apple", "car") for cfg in (1, 3.5) for colour in ("red", "green")]


def test_several_models_are_loaded_one_after_the_other(out, grid, tmp_path, monkeypatch, model) -> None:
    parts = tiny_model.modules()
    parts["unet"].conv_out.bias.data += 1
    store.save(tmp_path / "other", tiny_model.MODEL, parts)
    loaded, plain = [], sheets.Easel

    def easel(sd, *rest):
        loaded.append(sd.name)
        return plain(sd, *rest)

    monkeypatch.setattr(sheets, "Easel", easel)
    text = f'[x]\noption = "seed"\nvalues = [1, 2]\n[y]\noption = "model"\nvalues = ["{model}", "{tmp_path / "other"}"]'
    assert main(["a", "--grid", grid(text), "--steps", "1", "--out", str(out), "--device", "cpu"]) == 0
    assert loaded == ["tiny", "other"]
    assert [metadata.read_drawn(path).model for path in sorted(out.glob("0*.png"))] == ["tiny"] * 2 + ["other"] * 2


def test_a_sheet_overwrites_nothing_but_a_sheet(draw, out, grid, calls, capsys) -> None:
    out.mkdir()
    for content in (b"", b"mine", b"\x89PNG\r\n\x1a\n"):
        (out / "test.png").write_bytes(content)
        assert draw("--grid", grid(STEPS)) == 2
        assert "another file has the name" in capsys.readouterr().err
        assert (out / "test.png").read_bytes() == content and calls == []


def test_large_sheets_show_smaller_pictures(draw, out, grid, monkeypatch) -> None:
    monkeypatch.setattr(sheets, "LARGEST", 64 * 64)
    assert draw("--grid", grid(STEPS)) == 0
    with Image.open(out / "test.png") as sheet:
        assert sheet.width < 3 * 64


def test_an_interrupted_grid_goes_on(draw, out, grid, monkeypatch) -> None:
    plain, seen = StableDiffusion.draw, []

    def stop_at_fourth(self, *args):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(StableDiffusion, "draw", stop_at_fourth)
    assert draw("--grid", grid(STEPS)) == 6
    assert names(out) == ["00001-7.png", "00002-7.png", "00003-7.png"]
    assert draw("--grid", grid(STEPS)) == 0
    assert len(seen) == 7 and len(names(out)) == 7


X = '[x]\noption = "steps"\nvalues = [1]\n'
REFUSED = {
    "no such option": (X.replace("steps", "stepz"), "'stepz' is not an option.*near: .*steps"),
    "not of a picture": (X.replace("steps", "out"), "'out' is not an option"),
    "a wrong kind": (X.replace("[1]", '["many"]'), "'many' is not a int"),
    "out of range": (X.replace("[1]", "[1001]"), "1 to 1000"),
    "no values": (X.replace("[1]", "[]"), "values of axis x"),
    "a list": (X.replace("[1]", "[[1]]"), "texts or numbers"), "a truth": (X.replace("[1]", "[true]"), "axis x"),
    "no axis": ('[y]\noption = "steps"\nvalues = [1]', "missing entry 'x'"), "no TOML": ("[x", "not valid TOML"),
    "unknown": (X + "wat = 1", "unknown entry wat"), "twice": (X + X.replace("[x]", "[y]"), "steps is an axis, and"),
    "fixed as well": ("[options]\nsteps = 3\n" + X, "steps is an axis, and given elsewhere"),
    "an unknown fixed one": ("[options]\nstep = 3\n" + X, "'step' is not an option"),
    "a sampler": (X.replace("steps", "sampler").replace("[1]", '["eular"]'), "no sampler"),
    "a search for nothing": ('[x]\noption = "prompt"\nsearch = ""\nvalues = ["a"]', "searches for nothing"),
    "a search in vain": ('[x]\noption = "prompt"\nsearch = "zebra"\nvalues = ["a"]', "'zebra' is not in the prompt"),
    "a number in a text": ('[x]\noption = "prompt"\nsearch = "a"\nvalues = [1]', "give texts"),
    "too many": (X.replace("[1]", str(list(range(1, 102)))) + X.replace("[x]", "[y]").replace("steps", "seed").replace(
        "[1]", str(list(range(100)))), "10100 cells"),
    "absurd weights": (X + '[y]\noption = "prompt"\nvalues = ["(a:1000)"]', "1000"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_torch_is_needed(what, draw, grid, out, capsys, monkeypatch) -> None:
    text, told = REFUSED[what]
    monkeypatch.setattr(sheets, "draw", None)
    prompt = () if "[y]\noption = \"prompt\"" in text else ("a",)
    assert draw(*prompt, "--grid", grid(text)) == 2
    said = capsys.readouterr()
    assert re.search(f"(?s){told}", said.err) and len(said.err.splitlines()) <= 6 and not out.exists()
    assert "test.toml" in said.err


@pytest.mark.parametrize("args", [["a", "b"], ["a", "--count", "2"], ["a", "--from-image", "x.png"],
                                  ["--prompts", "x"]])
def test_refused_beside_a_grid(args, draw, grid, capsys) -> None:
    assert draw(*args, "--grid", grid(X)) == 2
    assert "make an axis" in capsys.readouterr().err


def test_a_grid_needs_a_prompt(draw, grid, capsys) -> None:
    assert draw("--grid", grid(X)) == 2 and "no prompt" in capsys.readouterr().err


def test_a_grid_that_is_not_there(draw, capsys) -> None:
    assert draw("a", "--grid", "nowhere.toml") == 3 and "nowhere.toml" in capsys.readouterr().err
