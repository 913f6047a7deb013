"""Any file given as a checkpoint: known by its first bytes, refused in a sentence, else read to the bit."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from textwrap import dedent

import pytest
import torch
from safetensors.torch import save, save_file

from minisd.errors import BAD_FILE, MinisdError
from weights_convert.header import LONGEST_HEADER
from weights_convert.mapped import Seen
from weights_convert.read import read_file

WEIGHTS = {"a.weight": torch.arange(12.).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16),
           "empty": torch.empty(0, 3), "number": torch.tensor(7)}
BIG = 2 ** 63


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def file_of(header, data=b"", length=None) -> bytes:
    """A safetensors file with this header, a text or what becomes one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refusal(path, **options) -> str:
    """What is said of a file that is refused; everything refused is so in the same way, and quickly."""
    start = time.process_time()
    with pytest.raises(MinisdError) as caught:
        read_file(path, **options)
    assert time.process_time() - start < 1 and caught.value.code == BAD_FILE
    said = str(caught.value)
    assert len(said.splitlines()) <= 6 and "\x1b" not in said
    return said


@pytest.fixture
def written(tmp_path):
    def write(data: bytes, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(data)
        return path
    return write


# --- what is read ---


@pytest.mark.parametrize("copy", [False, True])
def test_safetensors_come_back_to_the_bit(tmp_path, copy):
    save_file(WEIGHTS, tmp_path / "x", {"format": "pt", "who": "me\n"})
    found = read_file(tmp_path / "x", copy=copy)
    assert same(found.tensors, WEIGHTS) and found.format == "safetensors" and found.notes == []
    assert found.metadata == {"format": "pt", "who": "me\n"}


@pytest.mark.parametrize("text", [
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}    ',
    b' \n{ "__metadata__" : { } , "a" :\t{ "data_offsets" : [ 0 , 8 ] , "dtype" : "F32" , "shape" : [ 2 ] } }'[2:],
    b'{"\\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"x":" y","z":""}}',
])
def test_headers_of_other_writers(written, text):
    data = torch.tensor([1., 2.])
    assert same(read_file(written(file_of(text, data.numpy().tobytes()))).tensors, {"a": data})


def test_tensors_lie_in_the_file_and_writing_to_them_changes_nothing(written):
    path = written(save(WEIGHTS))
    before = path.read_bytes()
    read_file(path).tensors["a.weight"].zero_()
    assert path.read_bytes() == before and same(read_file(path).tensors, WEIGHTS)


def test_tensors_off_their_boundary_are_copied_and_noted(written):
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    for blanks in range(4):
        found = read_file(written(file_of(text + b" " * blanks, bytes(8))))
        assert found.tensors["a"].tolist() == [0, 0] and bool(found.notes) == bool((8 + len(text) + blanks) % 4)


@pytest.mark.parametrize("name", ["x.safetensors", "x.SafeTensors", "x.ckpt", "x.pt", "x.bin", "x", "ä ✓ x.zip"])
def test_the_name_of_a_file_means_nothing(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    assert read_file(tmp_path / name).format == "safetensors"
    torch.save({"state_dict": WEIGHTS}, tmp_path / name)
    found = read_file(tmp_path / name)
    assert found.format == "ckpt" and same(found.tensors, WEIGHTS)


# --- A1: cut off ---


def test_a_file_cut_off_anywhere_is_refused(written):
    whole = save(WEIGHTS)
    chance = random.Random(0)
    for place in [*range(17), *(chance.randrange(17, len(whole)) for _ in range(184))]:
        said = refusal(written(whole[:place]))
        assert "empty" in said if not place else "cut off" in said, place
        if place > 8:
            header = 8 + int.from_bytes(whole[:8], "little")
            wanted = len(whole) if place >= header else header
            assert f"{place:,} bytes" in said and f"{wanted:,}" in said and f"{wanted - place:,} are missing" in said


# --- A2: no checkpoint at all ---


@pytest.mark.parametrize("data, word", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "Git LFS pointer"),
    (b"<!DOCTYPE html><html><body>404", "HTML"), (b"  \n<html>\x1b[31m", "HTML"), (b"<?xml version='1.0'?>", "XML"),
    (b'{"error": "Not found", "code": 404}', "JSON"), (b"[1, 2, 3, 4, 5]", "JSON"), (b"", "empty"),
    (b"GGUF" * 9, "GGUF"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "old kind"), (b"\x80\x04\x95", "old kind"),
    (bytes(257) + b"ustar", "old kind"), (b"\x1f\x8b\x08" + bytes(99), "gzip"), (bytes(100), "neither"),
    (b"\xff" * 100, "neither"), (b"PK\3\4", "zip archive is damaged"), (b"Not found", "neither"),
])
def test_what_is_no_checkpoint_is_called_what_it_is(written, data, word):
    assert word in refusal(written(data))


def test_what_is_no_plain_file_is_called_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, word in [(tmp_path, "a folder"), (tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device"),
                       (tmp_path / "link", "leads nowhere"), (tmp_path / "none", "no such file"),
                       (tmp_path / "loop", "cannot be opened"), ("x" * 4000, "cannot be opened"),
                       ("a\0b", "cannot be opened")]:
        assert word in refusal(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(written):
    path = written(save(WEIGHTS))
    path.chmod(0)
    assert "Permission denied" in refusal(path)


# --- A3 and A4: headers ---

HEADERS = {
    "length 2^63": (file_of(b"{}", length=BIG), "neither"),
    "length 2^62": (file_of(b"{}", length=2 ** 62), "header is damaged"),
    "length 100 MB": (file_of(b"{}", length=100_000_001), "claims 100,000,001 bytes"),
    "length beyond ours": (file_of(b"{}", length=LONGEST_HEADER + 1), "header is damaged"),
    "deep": (file_of(b'{"a":' + b"[" * 2_000_000), "it is not JSON"),
    "deep and short": (file_of(b'{"a":{"dtype":' + b"[" * 1900 + b"}}"), "it is not JSON"),
    "deep objects": (file_of(b'{"a":' * 500_000), "it is not JSON"),
    "deep metadata": (file_of(b'{"__metadata__":{"a":' * 500_000), "it is not JSON"),
    "not UTF-8": (file_of(b'{"\xff":1}'), "utf-8"),
    "surrogate": (file_of(b'{"\\ud800":' + json.dumps(tensor()).encode() + b"}", bytes(8)), "not printable"),
    "no JSON": (file_of(b"{]"), "it is not JSON"),
    "open": (file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', bytes(8)), "it is not JSON"),
    "something behind": (file_of(b"{}{}"), "it is not JSON"),
    "overlap": (file_of({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)), "b begins at byte"),
    "same bytes": (file_of({"a": tensor(), "b": tensor()}, bytes(8)), "begins at byte"),
    "gap": (file_of({"a": tensor(), "b": tensor(offsets=(12, 20))}, bytes(20)), "a gap after"),
    "gap at the beginning": (file_of({"a": tensor(offsets=(8, 16))}, bytes(16)), "a gap after"),
    "trailing": (file_of({"a": tensor()}, bytes(9)), "1 bytes follow the last tensor"),
    "negative": (file_of({"a": tensor((-2,))}, bytes(8)), "sensible"),
    "negative offsets": (file_of({"a": tensor(offsets=(-8, 0))}, bytes(8)), "sensible"),
    "backwards": (file_of({"a": tensor(offsets=(8, 0))}, bytes(8)), "does not fill"),
    "overflow": (file_of({"a": tensor((2 ** 32, 2 ** 32))}, bytes(8)), "sensible"),
    "empty and endless": (file_of({"a": tensor((0, BIG - 1), (0, 0))}), "sensible"),
    "empty and long": (file_of({"a": tensor((0, 2 ** 40, 2 ** 40), (0, 0))}), "sensible"),
    "huge number": (file_of(b'{"a":{"dtype":"F32","shape":[' + b"9" * 1900 + b'],"data_offsets":[0,8]}}'), "sensible"),
    "many dimensions": (file_of({"a": tensor((1,) * 100, (0, 4))}, bytes(4)), "sensible"),
    "true as a size": (file_of({"a": tensor((True,), (0, 4))}, bytes(4)), "sensible"),
    "fractions": (file_of({"a": tensor((2.0,))}, bytes(8)), "sensible"),
    "shape is no list": (file_of({"a": {**tensor(), "shape": "2"}}, bytes(8)), "sensible"),
    "unknown dtype": (file_of({"a": tensor(dtype="F4")}, bytes(8)), "dtype F4 is not known"),
    "dtype is no text": (file_of({"a": tensor(dtype=None)}, bytes(8)), "not known"),
    "missing field": (file_of({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "and nothing else"),
    "more fields": (file_of({"a": {**tensor(), "more": 1}}, bytes(8)), "and nothing else"),
    "field twice": (file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
                    "there twice"),
    "exact duplicate": (file_of(b'{"a":%b,"a":%b}' % ((json.dumps(tensor()).encode(),) * 2), bytes(8)), "there twice"),
    "duplicate in disguise": (file_of(b'{"a":%b,"\\u0061":%b}' % ((json.dumps(tensor()).encode(),) * 2), bytes(8)),
                              "there twice"),
    "metadata twice": (file_of(b'{"__metadata__":{},"__metadata__":{}}'), "there twice"),
    "metadata key twice": (file_of(b'{"__metadata__":{"a":"","a":""}}'), "there twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "are not texts"),
    "a list": (file_of(b"[]"), "neither"),
    "control characters": (file_of({"\x1b[2J\x07": tensor()}, bytes(8)), r"\\x1b"),
    "turned around": (file_of({"a\u202eb": tensor()}, bytes(8)), "not printable"),
    "NUL": (file_of({"a\0": tensor()}, bytes(8)), "not printable"),
    "1 MB name": (file_of({"a" * 2 ** 20: tensor()}, bytes(8)), "too long"),
    "too many": (file_of(b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n
                                           for n in range(100_001)) + b"}"), "more than 100,000 tensors"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_bad_header_is_refused(written, case):
    data, word = HEADERS[case]
    path = written(data)
    if case != "too many":
        assert word in refusal(path)
        return
    with pytest.raises(MinisdError, match=word):
        read_file(path)


def test_a_name_like_a_path_is_only_a_name(written, tmp_path):
    names = {"../../etc/x": tensor(), "/etc/y": tensor(offsets=(8, 16))}
    before = sorted(tmp_path.parent.rglob("*"))
    assert list(read_file(written(file_of(names, bytes(16)))).tensors) == list(names)
    assert len(sorted(tmp_path.parent.rglob("*"))) == len(before) + 1


def test_refusing_takes_no_memory(tmp_path):
    """In a process of its own; the files claim or hold much more."""
    for name in ("length 2^62", "length 100 MB", "deep", "empty and endless", "overflow", "1 MB name"):
        (tmp_path / name.replace("^", "")).write_bytes(HEADERS[name][0])
    program = dedent("""
        import resource, sys
        from pathlib import Path
        from minisd.errors import MinisdError
        from weights_convert.read import read_file
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in Path(sys.argv[1]).iterdir():
            try:
                read_file(path)
            except MinisdError:
                continue
            sys.exit(f"{path} was read")
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 64


# --- A5: known hashes ---


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


@pytest.mark.parametrize("sidecar", ["{}\n", "{}  model.safetensors\n", "{} *x\n"])
def test_a_hash_beside_the_file_has_to_agree(written, sidecar):
    data = save(WEIGHTS)
    written(sidecar.format(hashlib.sha256(data).hexdigest().upper()).encode(), "model.safetensors.sha256")
    assert same(read_file(written(data)).tensors, WEIGHTS)
    damaged = written(flipped(data, len(data) - 1))
    assert "hash" in refusal(damaged) and "model.safetensors" in refusal(damaged)
    assert not same(read_file(damaged, verify=False).tensors, WEIGHTS)
    written(b"", "model.safetensors.sha256")
    assert "hash" in refusal(written(data))


@pytest.mark.parametrize("key, before", [("modelspec.hash_sha256", "0x"), ("sshs_model_hash", "")])
def test_a_hash_in_the_metadata_has_to_agree(written, key, before):
    plain = save(WEIGHTS)
    body = plain[8 + int.from_bytes(plain[:8], "little"):]
    data = save(WEIGHTS, {key: before + hashlib.sha256(body).hexdigest()})
    assert same(read_file(written(data)).tensors, WEIGHTS)
    assert key in refusal(written(flipped(data, len(data) - 1)))


# --- A16: changed under our hands ---


def test_a_file_that_changes_while_it_is_mapped_is_noticed(written):
    path = written(save(WEIGHTS))
    found = read_file(path)
    found.seen.check_unchanged()
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(MinisdError, match="changed while it was in use"):
        found.seen.check_unchanged()
    path.unlink()
    with pytest.raises(MinisdError, match="vanished"):
        found.seen.check_unchanged()


def test_a_copy_outlives_its_file(tmp_path):
    """The process would end by SIGBUS if the tensors still lay in the file."""
    weights = {"a": torch.ones(2 ** 18)}
    save_file(weights, tmp_path / "x")
    found = read_file(tmp_path / "x", copy=True)
    os.truncate(tmp_path / "x", 0)
    assert same(found.tensors, weights)


def test_a_file_cut_off_while_it_is_copied_is_refused(written, monkeypatch):
    path = written(save(WEIGHTS))
    size = path.stat().st_size
    monkeypatch.setattr(Seen, "now", lambda path, status: Seen(path, size + 1, ()))
    assert "cut off while it was read" in refusal(path, copy=True)
