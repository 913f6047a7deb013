"""Files and folders that are whole or not there, whenever their writer is killed."""

from pathlib import Path

import pytest
import tiny_model
import torch
from killed import content, survives

from minisd import files, store


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
