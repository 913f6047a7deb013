"""Experiments: the shipped ones, with a checkpoint and in miniature; what is refused before anything is loaded."""

import json
from dataclasses import asdict

import pytest

from minisd import schema, store, surgery
from minisd.config import SD15
from minisd.errors import BAD_FILE, USAGE, MinisdError
from minisd.train.experiment import RECIPES, DistillTask, Experiment, find, is_experiment, merged, read

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml") if is_experiment(path))


def test_the_shipped_ones():
    assert {"exp0001", "exp0002", "bk-base", "bk-small", "bk-tiny"} <= set(SHIPPED) and "emoji" not in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_each_serves_a_checkpoint_and_the_embedded_model(name):
    whole, small = read(name, "sd15.safetensors"), read(name)
    assert (whole.teacher, small.teacher) == ("sd15.safetensors", "emoji")
    assert whole.name == small.name == name
    embedded = store.read_config(store.embedded("emoji"))
    assert (whole.data.size, small.data.size) == (512, embedded.size)
    surgery.student(SD15, whole.student.remove)
    assert surgery.student(embedded.unet, small.student.remove) != embedded.unet
    assert len(whole.preview.prompts) == len(small.preview.prompts) == 13


@pytest.mark.parametrize("first, second", [("exp0001", "exp0002")])
def test_the_second_phase_is_the_first_at_twice_the_rate_from_its_checkpoint(first, second):
    for teacher in (None, "x"):
        a, b = asdict(read(first, teacher)), asdict(read(second, teacher))
        assert b["train"].pop("lr") == 2 * a["train"].pop("lr")
        assert b["student"].pop("start") == f"exp0001/checkpoint-{a['train']['steps']}"
        assert a["student"].pop("start") == ""
        assert a.pop("name") != b.pop("name") and a == b
    assert read("exp0001", "x").train.steps == 7450 and read("exp0001", "x").train.lr == 5e-6


def test_a_resolved_experiment_reads_back(tmp_path):
    path = tmp_path / "recipe.json"
    for teacher in (None, "other"):
        path.write_text(json.dumps(asdict(read("exp0001", teacher))))
        assert read(str(path)) == read("exp0001", teacher)


def test_a_file_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("exp0001") == RECIPES / "exp0001.toml"
    (tmp_path / "exp0001").write_text("")
    assert find("exp0001").name == "exp0001"


def test_tables_are_merged_entry_by_entry():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": {"f": 5}}) == {
        "a": {"b": 1, "c": 4}, "d": 3, "e": {"f": 5}}


@pytest.mark.parametrize("text, words", [
    ('name = "x"\n[distil]\nnoise = 1.0', "did you mean distill?"), ("name = 3", "3 is not a str"),
    ('name = "x"\n[distill]\nnoise = -1.0', "noise = -1.0: give at least 0"),
    ('name = "x"\n[distill]\nnoise = 0.0\noutput = 0.0\nfeatures = 0.0', "nothing to learn from"),
    ('name = "x"\n[distill]\nimages = "mine"', "images"),
    ('name = "x"\n[data]\ncrop = 64', "leave crop out"),
    ('name = "x"\n[distill]\nrandom_captions = -1.0', "at least 0"),
    ('name = "x"\n[embedded.train]\nstep = 4', "did you mean steps?"), ('name = "x"\nseed = -1', "give 0 to"),
])
def test_what_is_refused(tmp_path, text, words):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(MinisdError) as error:
        read(str(tmp_path / "x.toml"))
    assert error.value.code == USAGE and words in error.value.why


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(MinisdError, match="no such recipe") as error:
        read("exp9999")
    assert error.value.code == BAD_FILE and "exp0001, exp0002" in error.value.why


def test_pairs_and_weights_are_read():
    task = schema.read(DistillTask, {"pairs": {"up.0": "up.1"}, "features_last": 0, "random_captions": "none"}, "x")
    assert task.pairs == {"up.0": "up.1"} and task.random_captions is None
    assert [task.weight("features", step, 11) for step in (0, 5, 10, 99)] == [1, 0.5, 0, 0]
    assert DistillTask(noise=0.0).terms() == ("output", "features") and Experiment("x").student.remove == ("midless",)
