"""The look at a folder beforehand: every broken file is found, and everything else that training would change."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from minisd.errors import BAD_FILE, USAGE
from minisd.tokenizer import Tokenizer
from minisd.train.__main__ import main
from minisd.train.buckets import Bucket, sizes
from minisd.train.config import DataConfig
from minisd.train.datacheck import check
from minisd.train.rows import read_rows

SIZES = sizes(64, 64, 1.0)


def cut(data, rng):
    return data[:rng.randrange(len(data) // 10, len(data) - 20)]


def scribble(data, rng):
    place = rng.randrange(60, len(data) - 60)
    return data[:place] + bytes(rng.randrange(256) for _ in range(40)) + data[place + 40:]


def nothing(data, rng):
    return b""


def page(data, rng):
    return b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


DAMAGES = (cut, nothing, page, scribble)


def findings(folder):
    return check(read_rows(folder, DataConfig(), "train"), SIZES, Tokenizer())


def names(found, heading):
    return {line.partition(":")[0] for line in found.files.get(heading, [])}


def test_every_broken_file_of_a_folder_with_five_percent_of_them_is_found(tmp_path):
    """PNG, which has checksums, damaged in four ways; JPEG, in the three that show."""
    rng, broken = random.Random(0), set()
    for n in range(200):
        path = tmp_path / f"{n}.{('png', 'jpg')[n % 2]}"
        pixels = np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text("noise")
        if n % 20 == 7 + n // 20 % 2:            # odd ones are JPEG, even ones PNG
            damage = DAMAGES[n // 40 % (4 if path.suffix == ".png" else 3)]
            path.write_bytes(damage(path.read_bytes(), rng))
            broken.add(path.name)
    found = findings(tmp_path)
    assert len(broken) == 10 and names(found, "broken") == broken and found.pictures == 200
    assert set(found.files) == {"broken"} and found.buckets == Counter({Bucket(64, 64): 190})


@pytest.fixture
def odd(tmp_path):
    """One picture of every oddness."""
    plain = Image.new("RGB", (64, 96), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(tmp_path / "turned.jpg", exif=exif)
    plain.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "deep.png")
    plain.convert("L").save(tmp_path / "grey.png")
    plain.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 96), "blue")])
    Image.new("RGB", (40, 40)).save(tmp_path / "small.png")
    for name in ("turned", "alpha", "deep", "grey", "moving"):
        (tmp_path / f"{name}.txt").write_text("a word")
    (tmp_path / "deep.txt").write_text("very " * 80)
    return tmp_path


def test_every_oddness_is_found(odd):
    found = findings(odd)
    expected = {"turned by EXIF": {"turned.jpg"}, "alpha": {"alpha.png"}, "16-bit or float": {"deep.png"},
                "grey": {"grey.png"}, "several frames": {"moving.gif"}, "smaller than trained on": {"small.png"},
                "no caption": {"small.png"}, "caption is cut": {"deep.png"}}
    assert {heading: names(found, heading) for heading in found.files} == expected
    assert "80 tokens" in found.files["caption is cut"][0] and "orientation 6" in found.files["turned by EXIF"][0]


def test_what_is_cropped_away_is_told_of_the_upright_picture(odd):
    found = findings(odd)
    assert sorted(round(share, 3) for share in found.lost) == [0, 0, *[0.333] * 4]
    wide = check(read_rows(odd, DataConfig(), "train"), [Bucket(64, 64), Bucket(96, 64)], Tokenizer())
    assert wide.buckets[Bucket(96, 64)] == 1       # the one that EXIF turns; the others stand upright


def test_the_program(odd, tmp_path, capsys):
    assert main(["data-check", str(odd), "--size", "64", "--ratio", "1.5"]) == BAD_FILE
    told = capsys.readouterr()
    assert "6 pictures" in told.out and "bucket 64x64" in told.out and "cropped away" in told.out
    assert "1 x no caption" in told.err and len(told.err.splitlines()) <= 6
    (odd / "small.txt").write_text("a word")
    assert main(["data-check", str(odd), "--size", "64"]) == 0
    assert main(["data-check", str(odd), "--size", "100"]) == USAGE
    assert main(["data-check", str(tmp_path / "none")]) == BAD_FILE
