"""Tar shards hold the same rows as a folder does, read where they lie; damaged ones are said."""

import io
import json
import tarfile
from dataclasses import replace

import pytest
import torch

from minisd.errors import BAD_FILE, MinisdError
from minisd.tokenizer import Tokenizer
from minisd.train.buckets import sizes
from minisd.train.config import DataConfig
from minisd.train.data import Pictures
from minisd.train.datacheck import check
from minisd.train.rows import read_rows

CFG = DataConfig(size=64)


def write(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def sharded(pictures, tmp_path):
    """The folder of eight pictures as two shards: with .json beside each, and one picture with a .txt."""
    files = {}
    for line in (pictures / "metadata.jsonl").read_text().splitlines():
        entry = json.loads(line)
        name = entry.pop("file")
        files |= {f"a/{name}": (pictures / name).read_bytes(),
                  f"a/{name}".replace(".png", ".json"): json.dumps(entry).encode()}
    half = dict(list(files.items())[:8])
    write(tmp_path / "0.tar", half)
    write(tmp_path / "1.tar", {name: data for name, data in files.items() if name not in half}
          | {"x.PNG": files["a/0.png"], "x.txt": "\ufeffwords ".encode(), "y.png": files["a/1.png"], "z.md": b""})
    return tmp_path


def test_the_same_rows_as_in_a_folder(sharded, pictures):
    for split in ("train", "holdout"):
        found, expected = read_rows(sharded, CFG, split), read_rows(pictures, CFG, split)
        for a, b in zip(found, expected, strict=False):
            assert replace(a, path=b.path, member=None) == b
            assert a.digest == b.digest and a.path.name == b.path.name
        extra = [(row.path.name, row.captions) for row in found[len(expected):]]
        assert extra == ([("x.PNG", ("words",)), ("y.png", ("",))] if split == "train" else [])


def test_the_same_pixels(sharded, pictures):
    ours, theirs = Pictures(sharded, CFG, 1, "holdout"), Pictures(pictures, CFG, 1, "holdout")
    assert torch.equal(ours.batch([0, 1, 2]).pixels, theirs.batch([0, 1, 2]).pixels)


def test_a_broken_picture_in_a_shard_never_ends_a_run(sharded, pictures):
    data = (pictures / "0.png").read_bytes()
    write(sharded / "2.tar", {"cut.png": data[:40], "cut.txt": b"cut"})
    source = Pictures(sharded, CFG, 1)
    source.batch(list(range(len(source.rows))))
    assert [path.name for path in source.broken] == ["cut.png"]
    found = check(source.rows, sizes(64, 64, 1.0), Tokenizer())
    assert [line.partition(":")[0] for line in found.files["broken"]] == ["cut.png"]


@pytest.mark.parametrize("content", [b"", b"x" * 2000, b"\x1f\x8b" + b"x" * 600], ids=["empty", "no tar", "compressed"])
def test_a_file_that_is_no_shard(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(MinisdError, match="the shard cannot be read") as error:
        read_rows(tmp_path, CFG, "train")
    assert error.value.code == BAD_FILE


@pytest.mark.parametrize("told, words", [
    (b"{", "Expecting"), (b"3", "not iterable"), (b'{"captions": []}', "at least one"), (b"{}", "no entry 'text'")])
def test_a_broken_row_is_named(tmp_path, pictures, told, words):
    write(tmp_path / "x.tar", {"p.png": (pictures / "0.png").read_bytes(), "p.json": told})
    with pytest.raises(MinisdError, match="a broken row") as error:
        read_rows(tmp_path, CFG, "train")
    assert words in error.value.why and "x.tar:p." in error.value.where
