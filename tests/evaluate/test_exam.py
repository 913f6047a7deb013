"""The choice of concepts: the same every time, unseen combinations first, captions in every style."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minisd.errors import MinisdError
from minisd.evaluate import exam


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def folder_with(rows: list[dict], tmp_path: Path) -> Path:
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_concepts_with_a_held_out_picture_come_first_each_once(data: Path):
    asked = exam.choose(data, (), 6)
    assert {q.prompt for q in asked.questions[:3]} == {"red, flat", "green, cartoon", "blue, flat"}
    assert [q.held_out for q in asked.questions] == [True] * 3 + [False] * 3
    assert len({q.concept for q in asked.questions}) == 6
    assert [q.prompt for q in asked.questions] == [f"{q.concept}, {q.real.style}" for q in asked.questions]


def test_a_training_picture_of_the_same_concept_stands_beside_each(data: Path):
    for question in exam.choose(data, (), 6).questions:
        assert question.seen.concept == question.concept
        assert (question.seen == question.real) != question.held_out


def test_the_choice_does_not_depend_on_the_order_of_rows(data: Path, tmp_path: Path):
    mixed = folder_with([row | {"file": str(data / row["file"])} for row in reversed(rows_of(data))], tmp_path)
    prompts = [[question.prompt for question in exam.choose(folder, (), 7).questions] for folder in (data, mixed)]
    assert prompts[0] == prompts[1]


def test_a_smaller_exam_is_the_beginning_of_a_larger_one(data: Path):
    assert exam.choose(data, (), 8).questions[:5] == exam.choose(data, (), 5).questions


def test_captions_are_of_the_same_concepts_in_each_style(data: Path):
    asked = exam.choose(data, (), 8)
    assert set(asked.captions) == {"flat", "cartoon"}
    for style, captions in asked.captions.items():
        assert captions == [f"{question.concept}, {style}" for question in asked.questions]


def test_what_is_not_core_is_held_out_for_the_autoencoder_only(data: Path):
    asked = exam.choose(data, (), 8)
    assert {row.concept for row in asked.held_out} == {"red", "green", "blue"}
    assert {row.concept for row in asked.unseen} == {"red", "green", "blue", "brown"}


def test_twins_are_neither_drawn_nor_seen(data: Path, tmp_path: Path):
    rows = rows_of(data)
    next(row for row in rows if row["captions"][0] == "red, cartoon")["split"] = "twin"
    folder = folder_with([*rows, rows[0] | {"style": "noto", "split": "train", "captions": ["red, noto"]}], tmp_path)
    asked = exam.choose(folder, (), 8)
    red = next(question for question in asked.questions if question.concept == "red")
    assert (red.real.style, red.seen.style) == ("flat", "noto")
    assert "red, cartoon" in asked.captions["cartoon"]


def test_styles_that_were_not_learnt_are_left_out(data: Path):
    asked = exam.choose(data, ("flat",), 5)
    assert set(asked.styles) == {"flat"}
    assert {row.style for row in asked.held_out} == {"flat"}
    assert {row.style for row in asked.unseen} == {"flat", "cartoon"}   # the autoencoder has learnt all


def test_too_many_concepts_are_refused_with_their_number(data: Path):
    with pytest.raises(MinisdError, match="there are 8 concepts") as caught:
        exam.choose(data, (), 200)
    assert caught.value.code == 2


def test_a_folder_without_held_out_pictures_says_so(data: Path, tmp_path: Path):
    with pytest.raises(MinisdError, match="too few held-out pictures"):
        exam.choose(folder_with([row | {"split": "train"} for row in rows_of(data)], tmp_path), (), 4)


def test_rows_that_name_no_concept_are_each_their_own(data: Path, tmp_path: Path):
    rows = [{key: row[key] for key in ("file", "captions", "split")} for row in rows_of(data)]
    asked = exam.choose(folder_with(rows, tmp_path), (), 4)
    assert len({question.prompt for question in asked.questions}) == 4


def test_the_fingerprint_sees_pictures_captions_and_order(data: Path):
    rows = exam.choose(data, (), 8).held_out
    other = replace(rows[0], captions=("something else",))
    assert exam.fingerprint(rows) == exam.fingerprint(rows)
    assert len({exam.fingerprint(some) for some in (rows, rows[1:], rows[::-1], (other, *rows[1:]))}) == 4


def test_pixels_are_those_of_the_file(data: Path):
    x = exam.pixels(exam.choose(data, (), 8).held_out, 64)
    assert x.shape == (3, 3, 64, 64)
    assert x[:, :, 0, 0].tolist() == [[1.0, 1.0, 1.0]] * 3
