"""PyTorch's checkpoints, read without running them: real ones to the bit, hostile and damaged ones never."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from textwrap import dedent

import hostile
import pytest
import torch
from hostile import archive_of, good_pickle, named, plain, text

from minisd.errors import BAD_FILE, MinisdError
from weights_convert.read import read_file

ROOT = Path(__file__).parents[2]
FLOATS = torch.arange(24.).view(4, 6)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def saved(content) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


@pytest.fixture
def reading(tmp_path):
    def read(data: bytes):
        (tmp_path / "model.ckpt").write_bytes(data)
        return read_file(tmp_path / "model.ckpt")
    return read


def refusal(reading, data: bytes) -> str:
    start = time.process_time()
    with pytest.raises(MinisdError) as caught:
        reading(data)
    assert time.process_time() - start < 2 and caught.value.code == BAD_FILE
    said = str(caught.value)
    assert len(said.splitlines()) <= 6 and "\x1b" not in said
    return said


# --- real ones ---


def test_every_kind_of_tensor_comes_back_to_the_bit(reading):
    weights = {"plain": FLOATS, "turned": FLOATS.t(), "part": FLOATS[1:3, 2:], "parameter": torch.nn.Parameter(FLOATS),
               "half": torch.ones(5).half(), "bf16": torch.ones(5).bfloat16(), "none": torch.empty(0, 3),
               "number": torch.tensor(3), "bytes": torch.arange(9, dtype=torch.uint8), "yes": torch.tensor([True]),
               "unsigned": torch.ones(3).to(torch.uint16), "double": torch.ones(2).double()}
    found = reading(saved(weights))
    assert same(found.tensors, weights) and found.format == "ckpt" and not found.notes and not found.metadata
    eighth = torch.ones(4).to(torch.float8_e4m3fn)
    assert torch.equal(reading(saved({"x": eighth})).tensors["x"].float(), eighth.float())


def test_tensors_of_one_storage_still_share_it(reading):
    found = reading(saved({"a": FLOATS, "b": FLOATS[1:]})).tensors
    found["a"].zero_()
    assert not found["b"].any()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(reading, protocol):
    target = io.BytesIO()
    torch.save({"state_dict": OrderedDict(a=FLOATS)}, target, pickle_protocol=protocol)
    assert same(reading(target.getvalue()).tensors, {"a": FLOATS})


def test_a_training_run_of_lightning_is_read_and_the_rest_is_noted(reading):
    """As SD1.5's original file: callbacks keyed by their classes, optimizer states, copies by EMA."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = net.state_dict()
    state["model_ema.0weight"] = torch.zeros(4, 4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    data = saved({"epoch": 3, "global_step": 470_000, "pytorch-lightning_version": "1.4.2", "state_dict": state,
                  "callbacks": {hostile.Path: {"best_model_score": torch.tensor(0.1), "dirpath": ROOT}},
                  "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()],
                  "hparams": {1: (2, 3), (4, 5): {6}, "size": torch.Size([3]), "dtype": torch.float16}})
    found = reading(data)
    assert same(found.tensors, dict(state))
    assert found.notes == ["ignored beside state_dict: epoch, global_step, pytorch-lightning_version, callbacks, "
                           "optimizer_states, lr_schedulers, hparams"]
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(io.BytesIO(data), weights_only=True)


def test_what_is_no_tensor_is_noted(reading):
    assert reading(saved({"a": FLOATS, "step": 3})).notes == ["ignored, as they are no tensors: step"]


def test_an_embedding_of_a1111(reading):
    found = reading(saved({"string_to_token": {"*": 265}, "string_to_param": {"*": FLOATS}, "name": "x"}))
    assert torch.equal(found.tensors["*"], FLOATS)
    assert found.notes == ["ignored beside string_to_param: string_to_token, name"]


@pytest.mark.parametrize("content, word", [
    (torch.nn.Linear(2, 2), "whole module"), ([FLOATS], "whole module"), (FLOATS, "whole module"), ({}, "no tensors"),
    ({"params": {"*": FLOATS}, "name": "x"}, "only params, name"),
    ({"state_dict": 3}, "no dictionary"), ({"string_to_param": {"*": 3}}, "no tensors in it, only *"),
    ({3: FLOATS}, "names are no text"), ({"\x1b[2J": FLOATS}, "not printable"), ({"a" * 501: FLOATS}, "too long"),
    ({"s": torch.eye(2).to_sparse()}, "no tensors"), ({"a": FLOATS[:1].expand(9, 6)}, "outside its storage"),
])
def test_what_holds_no_weights_is_refused(reading, content, word):
    assert word in refusal(reading, saved(content))


def test_without_checksums_it_is_read_and_noted(reading):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"a": FLOATS})
    finally:
        torch.serialization.set_crc32_options(before)
    if any(entry.CRC for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()):
        data = without_checksums(data)
    found = reading(data)
    assert same(found.tensors, {"a": FLOATS}) and "cannot be proven" in found.notes[0]


def without_checksums(data: bytes) -> bytes:
    """Zeros in the central directory, where they count."""
    changed, at = bytearray(data), data.find(b"PK\1\2")
    while at >= 0:
        changed[at + 16:at + 20] = bytes(4)
        at = data.find(b"PK\1\2", at + 4)
    return bytes(changed)


# --- A6: hostile ones ---


def test_nothing_is_run_whatever_the_pickle_says(tmp_path):
    done = subprocess.run([sys.executable, hostile.__file__, str(tmp_path)], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = json.loads(done.stdout)
    assert len(found["said"]) >= 100 and not found["canary"]
    assert found["events"] == []
    assert {case: said for case, said in found["said"].items() if said != "whole"} == {}


# --- A8 and A9: bombs, and tensors that reach outside ---


def script(opcodes: bytes, entries=None, **more) -> bytes:
    return archive_of(b"\x80\x02" + opcodes + b".", good_pickle()[1] if entries is None else entries, **more)


def tensor(shape=(6,), stride=(1,), offset=0, count=6, key="0", kind="FloatStorage") -> bytes:
    """The opcodes of {"a": tensor}; the archive's storage 0 has six floats."""
    held = b"(" + text("storage") + named("torch", kind) + plain(key) + text("cpu") + plain(count) + b"tQ"
    return (b"}" + text("a") + named("torch._utils", "_rebuild_tensor_v2") + b"(" + held + plain(offset) + plain(shape)
            + plain(stride) + b"\x89" + named("collections", "OrderedDict") + b")RtRs")


def test_the_tensor_that_the_bad_ones_are_made_from_is_good(reading):
    assert reading(script(tensor())).tensors["a"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bad", [
    {"shape": (7,)}, {"offset": 1}, {"offset": -1}, {"stride": (2,)}, {"stride": (-1,)}, {"stride": (1, 1)},
    {"shape": (-1,)}, {"shape": (2 ** 62,)}, {"shape": (2 ** 32, 2 ** 32), "stride": (0, 0)}, {"offset": 2 ** 70},
    {"shape": (2 ** 40,), "stride": (0,)}, {"shape": (1,) * 100, "stride": (1,) * 100}, {"shape": [6]}, {"shape": None},
    {"shape": (6.0,)}, {"shape": (True,)}, {"shape": ("6",)}, {"offset": True},
    {"shape": (0, 2 ** 63), "stride": (1, 1)},
    {"count": 7}, {"count": 5}, {"count": -6}, {"count": 2 ** 64}, {"count": "6"}, {"count": None}, {"key": "9"},
    {"key": 0}, {"key": ("0",)}, {"key": "../version"}, {"key": "\x1b[2J"}, {"kind": "DoubleStorage"},
    {"kind": "QInt8Storage"}, {"kind": "load"}, {"shape": (0,), "offset": 2 ** 50},
])
def test_a_tensor_that_does_not_lie_in_its_storage_is_refused(reading, bad):
    refusal(reading, script(tensor(**bad)))


@pytest.mark.parametrize("opcodes", [
    b"]" + text("a") + b"Ns", text("x") + text("a") + b"Ns", b"}Na", b"N(Nu", b"}(Nu", b"0", b"j\xff\xff\xff\xff",
    b"(t" * 3 + b"R", b"cos\nsystem\nNR", b"(o", b"\x93", b"NN\x93", b"Q", b"NQ", text("a") + b"Q", b"Ptext\n", b"\x97",
    b"\x98", b"e", b"d", b"", b"\xff", b"I1x\n", b"\x8b\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"X\1\0\0\0\xff",
    b"Va\\ud800\n", b"c\n",
    b"S'a\n", b"L" + b"9" * 9999 + b"L\n", b"F1e\n", b"g1\n", b"p-1\n", b"Np-1\ng-1\n", b"\x8a\xffx",
    named("torch._utils", "_rebuild_tensor_v2") + b")R", named("torch._utils", "_rebuild_tensor_v3") + b"(NNNNNNNtR",
    named("torch._utils", "_rebuild_parameter") + b")R", named("collections", "OrderedDict") + b"N\x85R",
    named("collections", "OrderedDict") + b"]]}Na\x85R",
    named("torch._utils", "_rebuild_tensor_v2") + b"(" + named("os", "system") + b"K\0K\0K\0tR",
])
def test_a_pickle_without_sense_is_refused(reading, opcodes):
    refusal(reading, script(opcodes))


def test_archives_that_pytorch_does_not_write_are_refused(reading):
    weights, entries = good_pickle()
    assert "compressed" in refusal(reading, script(weights, compression=zipfile.ZIP_DEFLATED))
    assert "0 data.pkl" in refusal(reading, zip_of([("a/model.safetensors", b"x")]))
    assert "2 data.pkl" in refusal(reading, script(weights, {**entries, "other/data.pkl": b"."}))
    assert "big-endian" in refusal(reading, script(weights, {**entries, "archive/byteorder": b"big"}))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zip_of([("archive/data.pkl", b"N."), ("archive/data.pkl", b"N.")])
    assert "one name" in refusal(reading, twice)


def zip_of(entries) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return target.getvalue()


def test_overlapping_entries_are_refused(reading):
    """The second storage's directory entry leads to the first one's bytes, name and all."""
    data = bytearray(script(good_pickle()[0], {"archive/data/0": bytes(24), "archive/data/1": bytes(6)}))
    second = data.rfind(b"PK\1\2")
    first = data.rfind(b"PK\1\2", 0, second)
    data[second + 16:second + 28], data[second + 42:second + 46] = (data[first + 16:first + 28],
                                                                   data[first + 42:first + 46])
    data[second + 46:second + 60] = data[first + 46:first + 60]
    assert "overlaps" in refusal(reading, bytes(data))


def test_many_views_of_few_bytes_are_refused(reading):
    _, entries = good_pickle()
    entries["archive/data/0"] = bytes(40_000)
    one = tensor(shape=(10_000,), count=10_000)[1:-1].removeprefix(text("a"))
    many = b"".join(text(f"n{n}") + one for n in range(100))
    assert "larger than the file" in refusal(reading, script(b"}(" + many + b"u", entries))


BOMBS = {
    "a giant memo index": b"}r\xff\xff\xff\x7f",
    "a claim of 2^62 bytes": b"\x8e" + struct.pack("<Q", 2 ** 62),
    "a claim of 4 GB": b"B\xff\xff\xff\xff",
    "ten million lists": b"]" * 10_000_000,
    "ten million marks": b"(" * 10_000_000,
    "tuples of tuples as a key": b"}" + b")" + b"2\x86" * 100 + b"Ns",
    "numbers of one hash": b"}(" + b"".join(b"\x8a\x0b" + (n * (2 ** 61 - 1)).to_bytes(11, "little") + b"N"
                                            for n in range(20_000)) + b"u",
    "nested without end": b"\x85".join([b")"] + [b""] * 40_000),
    "a number of a megabyte": b"\x8b" + struct.pack("<i", 2 ** 20) + b"\x7f" * 2 ** 20,
}


def test_bombs_are_refused_in_no_time_and_little_memory(tmp_path):
    for name, opcodes in BOMBS.items():
        (tmp_path / name).write_bytes(script(opcodes))
    (tmp_path / "17 MB of data.pkl").write_bytes(script(b"N" * 17 * 2 ** 20))
    (tmp_path / "many entries").write_bytes(zip_of((f"archive/data/{n}", b"") for n in range(60_000)))
    (tmp_path / "deflated").write_bytes(script(b"N" * 10 ** 8, compression=zipfile.ZIP_DEFLATED))
    program = dedent("""
        import resource, sys, time
        from pathlib import Path
        from minisd.errors import MinisdError
        from weights_convert.read import read_file
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in Path(sys.argv[1]).iterdir():
            start = time.process_time()
            try:
                read_file(path)
                print("read", path.name)
            except MinisdError:
                pass
            if time.process_time() - start > 2:
                print("slow", path.name)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(f"{more} MiB" if more > 256 else "", end="")
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == ""


# --- damaged ones ---


def test_a_file_cut_off_anywhere_is_refused(reading):
    whole = saved({"state_dict": {"a": FLOATS}})
    chance = random.Random(0)
    for place in [*range(17), *(chance.randrange(17, len(whole)) for _ in range(184))]:
        refusal(reading, whole[:place])


def test_a_flipped_bit_names_its_tensor(reading):
    data = bytearray(saved({"first": FLOATS, "second": FLOATS + 1}))
    at = bytes(data).find(FLOATS.numpy().tobytes()[4:])
    data[at] ^= 1
    said = refusal(reading, bytes(data))
    assert "first" in said and "second" not in said


def test_damaged_files_are_never_read_wrong(tmp_path):
    """A short run of benchmarks/fuzz.py."""
    out = tmp_path / "fuzz.json"
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/fuzz.py"), "--count", "200", "--seed", "1",
                           "--kinds", "ckpt", "--out", str(out)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["kinds"]["ckpt"]["wrong"] == 0
