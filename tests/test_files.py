"""Files and folders that are whole or not there, whenever their writer is killed."""

from pathlib import Path

import pytest
import tiny_model
import torch
from killed import content, survives

from minisd import files, store
from minisd.errors import RESOURCE, USAGE, MinisdError


def test_a_folder_is_old_or_new_at_every_moment(tmp_path):
    def made(path: Path, text: str) -> None:
        with files.fresh(path) as new:
            (new / "sub").mkdir(parents=True)
            for name in ("a", "sub/b"):
                (new / name).write_text(text)

    target = tmp_path / "target"
    old, new = ({"a": text, "sub/b": text} for text in (b"old", b"new"))
    made(target, "old")
    moment, seen = 0, []
    while not survives(lambda: made(target, "new"), moment):
        seen.append(content(target))
        assert seen[-1] in (old, new)
        moment += 1
    assert len(seen) > 10 and old in seen and new in seen and content(target) == new
    assert [path.name for path in tmp_path.iterdir()] == ["target"]       # what the killed left is gone


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def made() -> None:
        with files.fresh(tmp_path / "sub" / "target") as new:
            new.write_bytes(bytes(100_000))

    moment = 0
    while not survives(made, moment):
        moment += 1
        target = tmp_path / "sub" / "target"
        if target.exists():
            assert target.read_bytes() == bytes(100_000)
            target.unlink()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["target"] and moment > 5


def test_a_small_file_is_old_or_new_at_every_moment(tmp_path):
    target = tmp_path / "sub" / "target"
    files.put(target, "old")
    moment = 0
    while not survives(lambda: files.put(target, b"new"), moment):
        assert target.read_text() in ("old", "new")
        moment += 1
    assert moment >= 3 and target.read_text() == "new"


def test_a_small_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "target").mkdir()                 # a file cannot take a folder's place
    with pytest.raises(MinisdError, match="target cannot be written") as caught:
        files.put(tmp_path / "target", "text")
    assert caught.value.code == RESOURCE and [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_for_results_is_made_and_holds_none(tmp_path):
    files.vacant(tmp_path / "new" / "folder", ("a.json",), "a table")
    (tmp_path / "new" / "folder" / "b.json").touch()
    files.vacant(tmp_path / "new" / "folder", ("a.json",), "a table")
    with pytest.raises(MinisdError, match="holds a table") as caught:
        files.vacant(tmp_path / "new" / "folder", ("a.json", "b.json"), "a table")
    assert caught.value.code == USAGE
    with pytest.raises(MinisdError, match="cannot be made") as caught:
        files.vacant(tmp_path / "new" / "folder" / "b.json", ("a.json",), "a table")
    assert caught.value.code == RESOURCE


def test_a_model_that_is_exported_again_is_old_or_new(tmp_path):
    folder, parts = tmp_path / "model", tiny_model.modules()
    store.save(folder, tiny_model.MODEL, parts)
    (folder / "README.md").write_text("a card")
    old = content(folder)
    with torch.no_grad():
        parts["vae"].decoder.conv_in.bias += 1

    def export() -> None:
        store.save(folder, tiny_model.MODEL, {"vae": parts["vae"], "text": parts["text"]}, keep=True)
    moment, seen = 0, []
    while not survives(export, moment):
        seen.append(content(folder))
        moment += 1
    new = content(folder)
    assert new.keys() == old.keys() and new != old and new["README.md"] == b"a card"
    assert len(seen) > 10 and all(one in (old, new) for one in seen) and old in seen


def test_a_writer_at_work_is_left_alone(tmp_path):
    with files.fresh(tmp_path / "one") as one:
        one.write_text("1")
        with files.fresh(tmp_path / "two") as two:
            two.write_text("2")
        assert one.read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_where_names_cannot_be_exchanged_the_old_folder_steps_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "swapped", lambda new, target: False)
    for text in ("old", "new"):
        with files.fresh(tmp_path / "target") as path:
            path.mkdir()
            (path / "a").write_text(text)
    assert content(tmp_path) == {"target/a": b"new"}


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.fresh(tmp_path / "x") as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
