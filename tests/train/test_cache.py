"""The cache: what is not exactly what was written is made anew, never used and never fatal."""

import json
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from minisd.train import cache as module
from minisd.train.cache import Cache, maker_of

TENSORS = {"hidden": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), "pooled": torch.arange(6.0)}
MAKER = "0123456789abcdef" * 4


def same(a, b):
    return a is not None and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Made:
    """Counts how often it had to make something."""

    def __init__(self, tensors=TENSORS):
        self.count, self.tensors = 0, tensors

    def __call__(self):
        self.count += 1
        return {name: t.clone() for name, t in self.tensors.items()}


def test_made_once_then_remembered_then_read(tmp_path):
    made, cache = Made(), Cache(tmp_path, MAKER)
    assert all(same(cache.recall("a cat", made), TENSORS) for _ in range(3)) and made.count == 1
    assert same(Cache(tmp_path, MAKER).recall("a cat", made), TENSORS) and made.count == 1
    assert same(Cache(tmp_path, MAKER).recall("a dog", made), TENSORS) and made.count == 2


def test_captions_of_any_characters(tmp_path):
    cache = Cache(tmp_path, MAKER)
    for content in ("", "../../etc/passwd", "\ud800", "x" * 100_000, "猫\0"):
        cache.put(content, TENSORS)
        assert same(cache.get(content), TENSORS)
    assert all(path.is_relative_to(cache.folder) for path in tmp_path.rglob("*.safetensors"))


def test_another_encoder_or_other_settings_are_another_cache(tmp_path):
    torch.manual_seed(0)
    linear = nn.Linear(2, 2)
    first = maker_of(linear, "size 64")
    assert maker_of(linear, "size 64") == first != maker_of(linear, "size 32")
    Cache(tmp_path, first).put("x", TENSORS)
    with torch.no_grad():
        linear.weight[0, 0] += 1e-6
    assert Cache(tmp_path, maker_of(linear, "size 64")).get("x") is None


def test_a_cut_entry_is_made_anew(tmp_path):
    cache = Cache(tmp_path, MAKER)
    cache.put("x", TENSORS)
    path, whole = cache.path("x"), cache.path("x").read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert cache.get("x") is None, length


def test_an_entry_with_one_flipped_bit_is_made_anew(tmp_path):
    """Bits all over the file: what is read in spite of it is what was written."""
    cache = Cache(tmp_path, MAKER)
    cache.put("x", TENSORS)
    path, whole = cache.path("x"), cache.path("x").read_bytes()
    used = 0
    for bit in range(0, 8 * len(whole), 7):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = cache.get("x")
        used += found is not None
        assert found is None or same(found, TENSORS), bit
    assert used <= 16                             # blanks that pad the header say nothing


def test_a_header_with_other_shapes_or_names_is_made_anew(tmp_path):
    cache = Cache(tmp_path, MAKER)
    cache.put("x", TENSORS)
    path, whole = cache.path("x"), cache.path("x").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:8 + size])
    for change in ({"shape": [6, 4]}, {"dtype": "I32"}):
        text = json.dumps(header | {"hidden": header["hidden"] | change}).encode().ljust(size)
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size:])
        assert cache.get("x") is None
    text = json.dumps({name.replace("pooled", "puddle"): entry for name, entry in header.items()}).encode().ljust(size)
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size:])
    assert cache.get("x") is None


def test_damage_is_mended(tmp_path):
    Cache(tmp_path, MAKER).put("x", TENSORS)
    Cache(tmp_path, MAKER).path("x").write_bytes(b"junk")
    made = Made()
    assert same(Cache(tmp_path, MAKER).recall("x", made), TENSORS) and made.count == 1
    assert same(Cache(tmp_path, MAKER).recall("x", made), TENSORS) and made.count == 1


def test_a_disk_that_cannot_be_written_is_told_once_and_done_without(tmp_path, caplog):
    (tmp_path / MAKER[:16]).write_text("a file where the folder should be")
    made, cache = Made(), Cache(tmp_path, MAKER)
    for content in ("x", "y", "x"):
        assert same(cache.recall(content, made), TENSORS)
    assert made.count == 2 and len(caplog.records) == 1


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEMORY", 300)
    made, cache = Made(), Cache(tmp_path, MAKER)
    for content in ("x", "y", "z", "x", "y", "z"):
        assert same(cache.recall(content, made), TENSORS)
    assert len(cache.memory) == 2 and made.count == 3


def test_many_threads_may_write_the_same_entry(tmp_path, caplog):
    with ThreadPoolExecutor(8) as pool:
        caches = [Cache(tmp_path, MAKER) for _ in range(200)]
        assert all(pool.map(lambda cache: same(cache.recall("x", Made()), TENSORS), caches))
    assert not caplog.records and len(list(tmp_path.rglob("*.*"))) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_any_type_and_layout(tmp_path, dtype):
    tensors = {"t": torch.arange(24).reshape(2, 3, 2, 2).to(dtype).to(memory_format=torch.channels_last)}
    cache = Cache(tmp_path, MAKER)
    cache.put("x", tensors)
    assert same(cache.get("x"), tensors)
