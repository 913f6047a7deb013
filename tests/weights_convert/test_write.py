"""Writing: whole or not at all, whoever is killed and whatever becomes of the source meanwhile."""

import os

import pytest
import torch
from families import model, same, saved
from killed import content, survives

from minisd.errors import BAD_FILE, MinisdError
from weights_convert import write as writing
from weights_convert.read import read_file
from weights_convert.sources import open_model
from weights_convert.write import save_file, write


@pytest.mark.parametrize("to", ["native", "ldm", "diffusers"])
def test_a_conversion_that_is_killed_leaves_nothing_or_all(to, tmp_path):
    source = tmp_path / "source.safetensors"
    write(model("bk-tiny", only=("text",)), source, "ldm")
    write(open_model(source), tmp_path / "wanted", to)
    target, moment = tmp_path / "place" / "target", 0
    while not survives(lambda: write(open_model(source), target, to), moment):
        if target.exists():
            assert content(target) == content(tmp_path / "wanted") and same(target, tmp_path / "wanted")
            assert not target.is_dir() or any(target.iterdir())
            os.rename(target, tmp_path / f"whole-{moment}")
        moment += 1
    assert moment > 10 and same(target, tmp_path / "wanted")
    assert [path.name for path in target.parent.iterdir()] == ["target"]   # what the killed left is gone


CHANGES = {
    "cut off": lambda path: os.truncate(path, 4096),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.open("ab").write(b"more"),
    "written over": lambda path: path.write_bytes(path.read_bytes()),
    "replaced": lambda path: (path.with_name("other").write_bytes(b"x"), path.with_name("other").replace(path)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_meanwhile_is_not_converted(change, tmp_path, monkeypatch):
    """In the middle of the second tensor; a cut file that is still mapped would end the process if it were touched."""
    source, names = saved("bk-tiny", tmp_path / "source.safetensors", "ldm"), []

    def spoil(name, tensor) -> None:
        names.append(name)
        if len(names) == 2:
            CHANGES[change](source)
    monkeypatch.setattr(writing, "must_be_finite", spoil)
    with pytest.raises(MinisdError, match="while it was in use") as error:
        write(open_model(source), tmp_path / "target", "native")
    assert error.value.code == BAD_FILE and len(names) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"source.safetensors"}


def test_every_dtype_that_is_read_is_written(tmp_path):
    kinds = [kind for kind in writing.NAMES if kind not in (torch.complex64,)]
    tensors = {str(kind): torch.ones(3, dtype=torch.uint8).to(kind) for kind in kinds}
    save_file(tmp_path / "x", tensors, {"format": "pt"})
    found = read_file(tmp_path / "x").tensors
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == tensors[name].dtype and torch.equal(found[name].double(), tensors[name].double())
               for name in tensors)


def test_tensors_that_do_not_lie_in_a_row_are_written_as_they_read(tmp_path):
    tensors = {"turned": torch.arange(12.).view(3, 4).T, "last": torch.randn(2, 3, 4, 4).to(
        memory_format=torch.channels_last), "number": torch.tensor(3.0), "none": torch.empty(0, 4)}
    save_file(tmp_path / "x", tensors, {})
    found = read_file(tmp_path / "x").tensors
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
