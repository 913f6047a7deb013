"""The program from end to end on a tiny model: pictures, their files, repeats, refusals."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file

from minisd import images, store
from minisd.drawing import metadata
from minisd.drawing.plan import Drawing
from minisd.generate import request
from minisd.generate.__main__ import main
from minisd.pipeline import StableDiffusion

Draw = Callable[..., int]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(a: Path, b: Path) -> bool:
    with Image.open(a) as one, Image.open(b) as other:
        return np.array_equal(np.asarray(one), np.asarray(other))


def test_a_picture_and_what_it_says(draw: Draw, model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("a red apple", "-n", "blurry", "--steps", "2", "--guidance-scale", "3", "--sampler",
                "Euler a", "--seed", "7", "-W", "64", "-H", "72", "--dtype", "float32") == 0
    assert names(out) == ["00001-7.png"] and capsys.readouterr().out == f"{out / '00001-7.png'}\n"
    drawn = metadata.read_drawn(out / "00001-7.png")
    assert drawn.drawing == Drawing("a red apple", "blurry", 2, 3.0, "Euler a", 7, 64, 72)
    assert (drawn.model, drawn.dtype, drawn.device, drawn.batch) == ("tiny", "float32", "cpu", 1)
    assert drawn.model_sha256 == store.fingerprint(Path(model))
    with Image.open(out / "00001-7.png") as image:
        assert image.size == (64, 72)
        text = image.text["parameters"]
    assert "Sampler: Euler a, Schedule type: Uniform, CFG scale: 3.0, Seed: 7, Size: 64x72" in text


def test_what_is_left_open_is_the_models_own(draw: Draw, out: Path) -> None:
    assert draw("a") == 0
    drawing = metadata.read_drawn(out / "00001-0.png").drawing
    assert (drawing.steps, drawing.guidance, drawing.sampler) == (20, 7.5, "dpm++2m karras")
    assert (drawing.width, drawing.height, drawing.seed, drawing.negative) == (64, 64, 0, "")


def test_several_prompts_and_a_sheet_of_all(draw: Draw, out: Path) -> None:
    assert draw("a red apple", "a blue car", "a green tree", "--count", "2", "--steps", "1", "--seed", "5",
                "--batch", "4") == 0
    found = names(out)
    assert found == [f"0000{n}-{seed}.png" for n, seed in enumerate((5, 6, 5, 6, 5, 6), start=1)] + ["00007-grid.png"]
    drawings = [metadata.read_drawn(out / name).drawing for name in found[:-1]]
    assert [one.prompt for one in drawings] == ["a red apple"] * 2 + ["a blue car"] * 2 + ["a green tree"] * 2
    assert [metadata.read_drawn(out / name).batch for name in found[:-1]] == [4, 4, 4, 4, 2, 2]
    with Image.open(out / "00007-grid.png") as sheet:
        assert sheet.size == (2 * 64 + images.GAP, 3 * 64 + 2 * images.GAP)


def test_nothing_is_overwritten(draw: Draw, out: Path) -> None:
    for _ in range(2):
        assert draw("a", "--steps", "1") == 0
    assert names(out) == ["00001-0.png", "00002-0.png"] and same(out / "00001-0.png", out / "00002-0.png")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_drawn_again_is_the_same(draw: Draw, model: str, out: Path, dtype: str) -> None:
    assert draw("a red apple", "a blue car", "--count", "3", "--steps", "3", "--seed", "5", "--batch", "4",
                "--dtype", dtype, "--cfg", "4", "--sampler", "euler a") == 0
    for name in names(out)[:-1]:
        again = out / "again" / name
        assert main(["--from-image", str(out / name), "--model", model, "--out", str(again)]) == 0
        (picture,) = again.iterdir()
        assert same(out / name, picture)
        assert metadata.read_drawn(out / name) == metadata.read_drawn(picture)


def test_options_beside_a_picture_replace_its_own(draw: Draw, out: Path) -> None:
    assert draw("a red apple", "--steps", "1", "--seed", "5", "--size", "64x72") == 0
    assert draw("a blue car", "--from-image", str(out / "00001-5.png"), "--count", "2", "--steps", "2") == 0
    assert names(out) == ["00001-5.png", "00002-5.png", "00003-6.png", "00004-grid.png"]
    drawing = metadata.read_drawn(out / "00003-6.png").drawing
    assert (drawing.prompt, drawing.steps, drawing.seed, drawing.height) == ("a blue car", 2, 6, 72)


def test_a_picture_of_other_weights_is_not_drawn_again(draw: Draw, model: str, out: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("a", "--steps", "1") == 0
    other = tiny_model.folder(tmp_path, replace(tiny_model.MODEL, size=128, prediction="epsilon"))
    assert store.fingerprint(other) == store.fingerprint(Path(model))       # the same weights, made the same way
    parts = tiny_model.modules()
    parts["unet"].conv_out.bias.data += 1
    store.save(other, tiny_model.MODEL, parts)
    assert main(["--model", str(other), "--out", str(out), "--from-image", str(out / "00001-0.png")]) == 2
    assert "other weights" in capsys.readouterr().err
    assert main(["--from-image", str(out / "00001-0.png"), "--out", str(out)]) == 3
    assert "no embedded model is called 'tiny'" in capsys.readouterr().err


def test_a_strangers_picture_leads_nowhere(draw: Draw, model: str, out: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("a", "--steps", "1") == 0
    record = asdict(metadata.read_drawn(out / "00001-0.png"))
    for name in (model, "../" * 8 + model[1:], "https://example.com/model"):
        text = {"minisd": json.dumps(record | {"model": name})}
        stranger = images.write_png(Image.new("RGB", (8, 8)), out, "s", text)
        assert main(["--from-image", str(stranger), "--out", str(out)]) == 3
        assert "no embedded model" in capsys.readouterr().err


REFUSED = [
    ([], "no prompt"), (["a", "--steps", "0"], "--steps 0.*1 to 1000"), (["a", "--steps", "1001"], "1 to 1000"),
    (["a", "--cfg", "nan"], "--cfg nan.*0 to 100"), (["a", "--guidance-scale", "inf"], "0 to 100"),
    (["a", "--seed", "-1"], r"0 to 2\^64 - 1"), (["a", "--seed", str(2 ** 64)], r"0 to 2\^64 - 1"),
    (["a", "--seed", str(2 ** 64 - 1), "--count", "2"], r"0 to 2\^64 - 2"), (["a", "--size", "500x512"], "496 or 504"),
    (["a", "--size", "512"], "such as 128x128"), (["a", "--size", "0x64"], "64 to 2048"),
    (["a", "--size", "64x64", "-W", "64"], "one or the other"), (["a", "--size", "9" * 5000 + "x64"], "--size"),
    (["a", "-W", "513"], "512 or 520"), (["a", "--height", "1000000"], "64 to 2048"), (["a", "-H", "-8"], "64 to 2048"),
    (["a", "--count", "0"], "1 to 10000"), (["a", "b", "--count", "6000"], "at most 10000"),
    (["a", "--batch", "0"], "1 to 64"), (["a", "--batch-size", "65"], "1 to 64"),
    (["a", "--dtype", "float8"], "bfloat16"),
    (["a", "--sampler", "eular"], "nearest: euler"), (["a", "--device", "bogus"], "cpu, cuda"),
]


@pytest.mark.parametrize(("args", "told"), REFUSED, ids=[" ".join(args)[:40] for args, _ in REFUSED])
def test_refused_before_a_model_is_loaded(args: list[str], told: str, model: str, out: Path,
                                          capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "load_modules", None)
    assert main([*args, "--model", model, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert re.search(f"(?s){told}", said.err) and len(said.err.splitlines()) <= 6 and said.out == ""


@pytest.mark.parametrize(("args", "code"), [
    (["a", "--model", "nowhere"], 3), (["--prompts", "nowhere.txt"], 3), (["--from-image", "nowhere.png"], 3),
    (["a", "--out", __file__], 4), (["a", "--out", __file__ + "/below"], 4)])
def test_what_is_not_there(args: list[str], code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == code
    assert args[-1] in capsys.readouterr().err


def test_prompts_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"\xff\xfe\0", b"x" * (request.LARGEST_FILE + 1)):
        (tmp_path / "prompts.txt").write_bytes(content)
        assert main(["--prompts", str(tmp_path / "prompts.txt")]) == 3
        assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code", "told"), [
    (KeyboardInterrupt(), 6, "interrupted"), (MemoryError("12 GiB"), 4, "--batch 1"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "--batch 1"),
    (RuntimeError("shapes"), 1, "unforeseen RuntimeError: shapes")])
def test_what_stops_in_the_middle_leaves_the_finished_pictures(draw: Draw,
        error: BaseException, code: int, told: str, out: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = StableDiffusion.draw, []

    def stop_at_third(self: StableDiffusion, *args: object) -> list[Image.Image]:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return plain(self, *args)

    monkeypatch.setattr(StableDiffusion, "draw", stop_at_third)
    assert draw("a", "--steps", "1", "--count", "4", "--batch", "1") == code
    assert names(out) == ["00001-0.png", "00002-1.png"] and told in capsys.readouterr().err
    for name in names(out):
        images.open_picture(out / name)


def test_a_picture_that_is_not_finite_is_never_written(out: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model.folder(tmp_path)
    weights = load_file(model / "vae.safetensors")
    weights["decoder.conv_out.bias"] /= 0
    save_file(weights, model / "vae.safetensors")
    assert main(["--model", str(model), "--out", str(out), "a", "--steps", "1"]) == 5
    assert names(out) == [] and "decoder.conv_out.bias" in capsys.readouterr().err


def test_a_long_prompt_is_noted_once(draw: Draw, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("apple pear plum " * 10, "--steps", "1", "--count", "3", "--batch", "1") == 0
    said = capsys.readouterr().err
    assert "is read in 5 windows" in said and len(said.splitlines()) == 1


def test_where_the_time_went(draw: Draw, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("a", "--steps", "3", "--profile") == 0
    said = capsys.readouterr()
    assert said.out == f"{out / '00001-0.png'}\n"
    table = {line[:32].strip(): line[32:].split() for line in said.err.splitlines() if "%" in line}
    assert table["UNet"][0] == "3" and table["Decoder"][0] == "1"
    assert {"CLIPText", "Conv2d", "Linear", "Attention"} <= table.keys() and "s in all" in said.err


def test_weights_in_8_bits_are_remembered(draw: Draw, out: Path) -> None:
    assert draw("a", "--steps", "2", "--dtype", "int8") == 0
    assert metadata.read_drawn(out / "00001-0.png").dtype == "int8"
    assert draw("--from-image", str(out / "00001-0.png")) == 0
    assert same(out / "00001-0.png", out / "00002-0.png")
