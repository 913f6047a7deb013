"""Pictures to begin from, masks, guidance and a second walk, by the options of the program."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisd import images, store
from minisd.drawing import metadata
from minisd.drawing.control import Fresh, Guide, Hires, Mask, Start
from minisd.generate.__main__ import main

RAMP = ("--cfg-ramp", "0,1", "--cfg-interval", "0.1,5", "--cfg-rescale", "0.5", "--dynamic-threshold", "0.99")


def written(out: Path, name: str) -> np.ndarray:
    return np.asarray(images.open_picture(out / name))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    white = np.zeros((64, 72), dtype=np.uint8)
    white[16:40, 24:48] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_guidance_is_recorded_and_drawn_again(draw, out, model) -> None:
    assert draw("a", "--steps", "4", *RAMP) == 0
    recorded = metadata.read_drawn(out / "00001-0.png").drawing
    assert recorded.guide == Guide((0.0, 1.0), (0.1, 5.0), 0.5, 0.99)
    assert draw("--from-image", str(out / "00001-0.png")) == 0
    assert metadata.read_drawn(out / "00002-0.png").drawing == recorded
    assert np.array_equal(written(out, "00001-0.png"), written(out, "00002-0.png"))
    assert draw("a", "--steps", "4") == 0
    assert not np.array_equal(written(out, "00001-0.png"), written(out, "00003-0.png"))


def test_a_picture_to_begin_from(draw, out, photo) -> None:
    assert draw("a", "-i", str(photo), "--steps", "4") == 0
    assert draw("a", "--init-image", str(photo), "--steps", "4", "--strength", "0.25", "--size", "64x64") == 0
    first, second = (metadata.read_drawn(out / name).drawing for name in ("00001-0.png", "00002-0.png"))
    sha256 = images.fingerprint(images.open_picture(photo))
    assert first.start == Start(sha256, 0.75) and (first.width, first.height) == (72, 64)
    assert second.start == Start(sha256, 0.25) and (second.width, second.height) == (64, 64)
    assert written(out, "00001-0.png").shape == (64, 72, 3)


def test_a_mask_keeps_the_rest_byte_for_byte(draw, out, photo, mask) -> None:
    assert draw("a", "--image", str(photo), "--mask", str(mask), "--steps", "2", "--feather", "2") == 0
    assert metadata.read_drawn(out / "00001-0.png").drawing.mask == Mask(images.fingerprint(images.open_mask(mask)), 2)
    changed = (written(out, "00001-0.png") != np.asarray(images.open_picture(photo))).any(axis=2)
    assert changed[18:38, 26:46].mean() > 0.9
    changed[14:42, 22:50] = False
    assert not changed.any()


def test_the_masked_part_alone_is_drawn_in_a_picture_of_any_size(draw, out, tmp_path) -> None:
    Image.new("RGB", (131, 97), (200, 30, 60)).save(tmp_path / "photo.png")
    white = Image.new("L", (131, 97))
    white.paste(255, (100, 50, 120, 70))
    white.save(tmp_path / "mask.png")
    assert draw("a", "-i", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png"), "--steps", "2",
                "--only-masked", "8") == 0
    drawing = metadata.read_drawn(out / "00001-0.png").drawing
    assert (drawing.width, drawing.height, drawing.mask and drawing.mask.padding) == (64, 64, 8)
    assert written(out, "00001-0.png").shape == (97, 131, 3)


def test_a_picture_from_a_picture_is_drawn_again_with_its_own(draw, out, photo, mask, tmp_path, capsys) -> None:
    begun = ("--image", str(photo), "--mask", str(mask))
    assert draw("a", *begun, "--steps", "2", "--feather", "3", "--seed", "4", "--sampler", "euler a") == 0
    again = ("--from-image", str(out / "00001-4.png"))
    assert draw(*again, *begun) == 0
    assert np.array_equal(written(out, "00001-4.png"), written(out, "00002-4.png"))
    assert metadata.read_drawn(out / "00001-4.png") == metadata.read_drawn(out / "00002-4.png")
    assert draw(*again) == 2 and "--image and --mask" in capsys.readouterr().err
    Image.new("RGB", (72, 64)).save(tmp_path / "other.png")
    assert draw(*again, "--image", str(tmp_path / "other.png"), "--mask", str(mask)) == 2
    assert "same picture" in capsys.readouterr().err


def test_a_second_walk(draw, out) -> None:
    assert draw("a", "--steps", "3", "--hires", "1.5", "--hires-steps", "4", "--hires-upscaler", "lanczos") == 0
    assert draw("a", "--steps", "3", "--hires-strength", "0.5") == 0
    drawings = [metadata.read_drawn(out / name).drawing for name in ("00001-0.png", "00002-0.png")]
    assert [one.hires for one in drawings] == [Hires(1.5, 0.7, 4, "lanczos"), Hires(strength=0.5)]
    assert written(out, "00001-0.png").shape == (96, 96, 3) and written(out, "00002-0.png").shape == (128, 128, 3)
    assert draw("--from-image", str(out / "00001-0.png")) == 0
    assert np.array_equal(written(out, "00001-0.png"), written(out, "00003-0.png"))


def test_a_strength_that_another_number_of_steps_would_allow_is_judged_by_the_models_own(draw, photo, capsys) -> None:
    assert draw("a", "-i", str(photo), "--strength", "0.02") == 2
    assert "of 20 steps is less than one" in capsys.readouterr().err


def test_noise_on_the_way_is_recorded_and_drawn_again(draw, out) -> None:
    noisy = ("--churn", "10", "--churn-low", "0.1", "--churn-high", "9", "--churn-noise", "1.01")
    assert draw("a", "--steps", "4", "--sampler", "euler", *noisy) == 0
    assert draw("a", "--steps", "4", "--sampler", "euler", "--eta", "0.5") == 0
    first, second = (metadata.read_drawn(out / name).drawing for name in ("00001-0.png", "00002-0.png"))
    assert first.fresh == Fresh(None, 10.0, 0.1, 9.0, 1.01) and second.fresh == Fresh(0.5)
    for name, again in (("00001-0.png", "00003-0.png"), ("00002-0.png", "00004-0.png")):
        assert draw("--from-image", str(out / name)) == 0
        assert np.array_equal(written(out, name), written(out, again))
    assert not np.array_equal(written(out, "00001-0.png"), written(out, "00002-0.png"))


REFUSED = [
    (["--strength", "0.5"], "--strength, but no picture"), (["--feather", "2"], "no mask"),
    (["--mask", "MASK"], "no picture"), (["-i", "PHOTO", "--strength", "1.5"], "0 to 1"),
    (["-i", "PHOTO", "--mask", "MASK", "--feather", "-1"], "--feather"),
    (["-i", "PHOTO", "--hires", "2"], "second walk"),
    (["--hires", "9"], "1 to 8"), (["--hires-upscaler", "x"], "latent"),
    (["--hires", "1.01", "--size", "64x64"], "multiples of 8"), (["--cfg-ramp", "0,x"], "commas"),
    (["--cfg-interval", "1"], "two numbers"), (["--cfg-interval", "5,1"], "empty"), (["--cfg-rescale", "2"], "0 to 1"),
    (["--threshold", "nan"], "0.5 to 1"), (["--image-cfg", "2"], "no picture"),
    (["--sampler", "ddim", "--eta", "-1"], "0 to 10"), (["--sampler", "unipc", "--eta", "1"], "unipc has no eta"),
    (["--churn", "1", "--churn-low", "5", "--churn-high", "2"], "churn-high"), (["-i", "ODD"], "own size"),
    (["-i", "PHOTO", "--mask", "WHITE"], "the mask has 8x8 pixels"),
    (["(a:1000)"], "1000"), (["-n", "(a:1000)"], "1000"),
]


@pytest.mark.parametrize(("args", "told"), REFUSED, ids=[" ".join(args)[:40] for args, _ in REFUSED])
def test_refused_before_a_model_is_loaded(args, told, draw, photo, mask, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(store, "load_modules", None)
    names = {"PHOTO": str(photo), "MASK": str(mask), "ODD": str(tmp_path / "odd.png"),
             "WHITE": str(tmp_path / "white.png")}
    Image.new("RGB", (131, 97)).save(names["ODD"])
    Image.new("L", (8, 8), 255).save(names["WHITE"])
    assert draw("a", *(names.get(arg, arg) for arg in args)) == 2
    said = capsys.readouterr()
    assert re.search(f"(?s){told}", said.err) and len(said.err.splitlines()) <= 6 and said.out == ""


@pytest.mark.parametrize("option", ["--image", "--mask"])
def test_a_picture_that_is_not_there(option, photo, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["a", "-i", str(photo), option, "nowhere.png"]) == 3
    assert "nowhere.png" in capsys.readouterr().err
