"""`python -m weights_convert lora ...`: each action end to end on a small checkpoint, and what it says of mistakes."""

import pytest
import safetensors.torch
import torch
from families import saved

from weights_convert.__main__ import main
from weights_convert.lora.read import read_adapter
from weights_convert.read import read_file
from weights_convert.write import save_file

KEY = "model.diffusion_model.input_blocks.1.1.proj_in.weight"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A checkpoint, what a training of rank 2 made of one module of it, and the LoRA between them."""
    folder = tmp_path_factory.mktemp("lora")
    before = read_file(saved("bk-tiny", folder / "before.safetensors", "ldm")).tensors
    draw = torch.Generator().manual_seed(0)
    rows, columns = before[KEY].shape[:2]
    change = torch.randn(rows, 2, generator=draw) @ torch.randn(2, columns, generator=draw)
    metadata = read_file(folder / "before.safetensors").metadata
    save_file(folder / "after.safetensors", before | {KEY: before[KEY] + change.reshape(before[KEY].shape)}, metadata)
    assert run(folder, "extract before.safetensors after.safetensors lora.safetensors --rank 2") == 0
    return folder


def run(folder, line: str) -> int:
    """The exit code; words with a dot in them, and new ones, are files of the folder."""
    action, *words = line.split()
    try:
        return main(["lora", action, *(str(folder / word) if "." in word or word.startswith("new") else word
                                       for word in words)])
    except SystemExit as end:
        return int(end.code or 0)


def test_what_was_extracted_and_merged_is_what_was_trained(here, tmp_path, capsys):
    adapter = read_adapter(here / "lora.safetensors")
    assert [entry.rank for entry in adapter.entries.values()] == [2]
    assert run(here, "merge before.safetensors merged.safetensors lora.safetensors") == 0
    after, merged = (read_file(here / f"{name}.safetensors").tensors for name in ("after", "merged"))
    assert torch.allclose(merged[KEY], after[KEY], atol=1e-4)
    assert all(torch.equal(merged[key], after[key]) for key in after if key != KEY)
    assert f"{here / 'merged.safetensors'}: SD1-like checkpoint, ldm" in capsys.readouterr().out
    assert run(here, "merge after.safetensors undone.safetensors lora.safetensors:-1") == 0
    before, undone = (read_file(here / f"{name}.safetensors").tensors for name in ("before", "undone"))
    assert torch.allclose(undone[KEY], before[KEY], atol=1e-4)


def test_resize_subtract_average_and_convert(here, capsys):
    delta = next(iter(read_adapter(here / "lora.safetensors").entries.values())).delta()

    def made(name):
        return next(iter(read_adapter(here / name).entries.values()))
    assert run(here, "resize lora.safetensors one.safetensors --rank 1") == 0
    assert made("one.safetensors").rank == 1 and "kept of the energy" in capsys.readouterr().out
    assert run(here, "subtract lora.safetensors one.safetensors less.safetensors") == 0
    assert torch.allclose(made("less.safetensors").delta(), delta - made("one.safetensors").delta(), atol=1e-4)
    assert run(here, "average mean.safetensors lora.safetensors one.safetensors") == 0
    assert torch.allclose(made("mean.safetensors").delta(), (delta + made("one.safetensors").delta()) / 2, atol=1e-4)
    assert run(here, "convert lora.safetensors new-peft --to peft") == 0
    assert run(here, "convert new-peft back.safetensors") == 0
    assert torch.equal(made("back.safetensors").delta(), delta)
    assert run(here, "inspect lora.safetensors") == 0
    assert "unet: 1 modules; kind lora; rank 2; alpha 2" in capsys.readouterr().out


@pytest.mark.parametrize(("line", "code", "sentence"), [
    ("average x.safetensors", 2, "no LoRAs to average"),
    ("merge before.safetensors x.safetensors", 2, "no LoRAs to merge"),
    ("merge before.safetensors x.safetensors lora.safetensors:nan", 2, "a strength of nan"),
    ("merge before.safetensors x.safetensors lora.safetensors:much", 3, "no such file"),
    ("merge before.safetensors x.ckpt lora.safetensors", 2, "does not go with the layout"),
    ("convert lora.safetensors x.pt", 2, "does not go with the layout kohya"),
    ("convert lora.safetensors before.safetensors", 2, "is there already"),
    ("convert before.safetensors x.safetensors", 3, "not a LoRA"),
    ("extract before.safetensors before.safetensors x.safetensors", 2, "the same weights"),
    ("extract before.safetensors after.safetensors x.safetensors --rank 0", 2, "give at least 1"),
    ("resize lora.safetensors x.safetensors", 2, "neither a rank nor an energy"),
    ("resize lora.safetensors x", 2, "neither a rank"), ("inspect .", 3, "no LoRA in this folder"),
    ("unheard-of", 2, "extract"), ("--help", 0, "resize"), ("merge --help", 0, "LORA[:STRENGTH]"),
])
def test_what_is_said_of_wrong_words(line, code, sentence, here, capsys):
    assert run(here, line) == code
    said = capsys.readouterr()
    assert sentence in said.out + said.err
    assert not list(here.glob("x*"))


# --- faults of the files (faults.md, B1 to B3), through every action that reads them ---


def first(tensors, end):
    return next(key for key in tensors if key.endswith(end))


def put(tensors, end, value):
    tensors[first(tensors, end)] = value


FAULTS = {                                        # what is done to a LoRA, the exit code, what is told
    "another family": (lambda t: [t.__setitem__(key.replace("down_blocks", "down_blocks_7"), t.pop(key))
                                  for key in list(t)], 3, "belongs to another model"),
    "up without its down": (lambda t: t.pop(first(t, "lora_down.weight")), 3, "is not whole"),
    "alpha alone": (lambda t: [t.pop(first(t, f"lora_{role}.weight")) for role in ("down", "up")], 3, "is not whole"),
    "ranks that differ": (lambda t: put(t, "lora_up.weight", torch.ones(64, 5)), 3, "do not fit together"),
    "an alpha that is NaN": (lambda t: put(t, "alpha", torch.tensor(float("nan"))), 5, "alpha of nan"),
    "a NaN": (lambda t: t[first(t, "lora_up.weight")].fill_(float("nan")), 5, "NaN"),
    "DoRA": (lambda t: t.__setitem__(f"{first(t, '.alpha').removesuffix('.alpha')}.dora_scale", torch.ones(1)), 3,
             "DoRA, which are not read"),
    "an unknown key": (lambda t: t.__setitem__("what.is_this", torch.ones(1)), 3, "what.is_this"),
    "nothing": (lambda t: t.clear(), 3, "it holds no side paths"),
}


@pytest.mark.parametrize(("fault", "line"), [
    *((fault, "merge before.safetensors x.safetensors bad.safetensors") for fault in FAULTS),
    ("a NaN", "inspect bad.safetensors"), ("another family", "convert bad.safetensors x.safetensors"),
    ("DoRA", "resize bad.safetensors x.safetensors --rank 1"),
    ("ranks that differ", "average x.safetensors lora.safetensors bad.safetensors")])
def test_a_bad_file_is_refused_by_every_action(fault, line, here, capsys):
    change, code, told = FAULTS[fault]
    file = read_file(here / "lora.safetensors")
    tensors = {key: tensor.clone() for key, tensor in file.tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, here / "bad.safetensors", file.metadata)     # ours would refuse NaN
    try:
        assert run(here, line) == code
    finally:
        (here / "bad.safetensors").unlink()
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) <= 6 and "Traceback" not in error
    assert not list(here.glob("x*"))


def test_words_are_kept_or_told(here, capsys):
    file = read_file(here / "lora.safetensors")
    words = {"<s1>": torch.ones(64), "bundle_emb.Inky.string_to_param.*": torch.ones(2, 64)}
    save_file(here / "bad.safetensors", {**file.tensors, **words}, file.metadata)
    try:
        assert run(here, "inspect bad.safetensors") == 0
        told = capsys.readouterr().out
        assert "the word '<s1>': 1 vectors of 64 numbers" in told and "the word 'Inky': 2 vectors" in told
        assert run(here, "convert bad.safetensors kept.safetensors") == 0
        assert words.keys() < read_file(here / "kept.safetensors").tensors.keys()
        assert "stay behind" not in capsys.readouterr().out
        for line in ("convert bad.safetensors new-folder --to peft",
                     "subtract bad.safetensors lora.safetensors y.safetensors",
                     "merge before.safetensors z.safetensors bad.safetensors"):
            assert run(here, line) == 0
            assert "stay behind: '<s1>', 'Inky'" in capsys.readouterr().out
    finally:
        (here / "bad.safetensors").unlink()
