"""Going on: from which checkpoint, with what settings, and what a kill has left behind."""

from dataclasses import replace

import pytest
from line import CFG, fit, prepared, rows, same, saved, start

from minisd.errors import BAD_FILE, RESOURCE, USAGE, MinisdError
from minisd.train import resume, state
from minisd.train.resume import step_of, trim

SHORT = replace(CFG, steps=4)


def refused(*args, code, **options):
    with pytest.raises(MinisdError) as error:
        start(*args, **options)
    assert error.value.code == code
    return str(error.value)


def notes(folder, **settings):
    """What is told when a run goes on."""
    run = prepared(folder, CFG, None, settings)
    return resume.resume(run, "auto")


def damage(path):
    (path / "ema.safetensors").write_bytes(b"damaged")


def test_auto_starts_anew_where_there_is_nothing(tmp_path):
    assert start(tmp_path / "new").state.step == 0
    assert notes(tmp_path / "new") == ["starts"]


def test_the_newest_is_taken(tmp_path):
    fit(tmp_path, SHORT)
    assert start(tmp_path).state.step == 4
    assert start(tmp_path, how="latest").state.step == 4


def test_a_damaged_newest_is_set_aside_and_the_run_is_the_same(tmp_path):
    fit(tmp_path / "whole")
    fit(tmp_path / "cut", SHORT)
    damage(tmp_path / "cut" / "checkpoint-4")
    found = notes(tmp_path / "cut")
    assert "checkpoint-4 is set aside: ema.safetensors has 7 bytes" in found[0]
    assert found[-1] == "goes on from checkpoint-2"
    assert (tmp_path / "cut" / "unreadable-checkpoint-4").is_dir()
    fit(tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_nothing_but_damaged_ones_is_an_error_and_never_a_silent_fresh_start(tmp_path):
    fit(tmp_path, SHORT)
    for path in state.checkpoints(tmp_path):
        damage(path)
    for how in ("auto", "latest", "auto"):
        assert "no checkpoint can be read" in refused(tmp_path, how=how, code=BAD_FILE)


def test_never_refuses_what_is_there(tmp_path):
    assert start(tmp_path, how="never").state.step == 0
    fit(tmp_path, SHORT)
    assert "--resume never was given" in refused(tmp_path, how="never", code=USAGE)


# --- a checkpoint by its path ---


def test_the_newest_by_its_path(tmp_path):
    fit(tmp_path, SHORT)
    assert start(tmp_path, how=str(tmp_path / "checkpoint-4")).state.step == 4
    told = refused(tmp_path, how=str(tmp_path / "checkpoint-2"), code=USAGE)
    assert "checkpoint-2 is not the newest" in told and "checkpoint-4" in told


def test_another_runs_checkpoint_by_its_path(tmp_path):
    fit(tmp_path / "one", SHORT)
    run = fit(tmp_path / "two", how=str(tmp_path / "one" / "checkpoint-2"))
    assert run.state.step == 6 and [row["step"] for row in rows(tmp_path / "two") if "fit" in row] == [3, 4, 5, 6]
    fit(tmp_path / "whole")
    assert saved(tmp_path / "two") == saved(tmp_path / "whole")


def test_what_is_no_checkpoint(tmp_path):
    fit(tmp_path, SHORT)
    for path in ("checkpoint-9", "checkpoint-4/manifest.json", "nothing", ""):
        assert "no such checkpoint" in refused(tmp_path / "new", how=str(tmp_path / path), code=BAD_FILE)
    damage(tmp_path / "checkpoint-4")
    assert "ema.safetensors has 7 bytes" in refused(tmp_path, how=str(tmp_path / "checkpoint-4"), code=BAD_FILE)


# --- settings ---

SETTINGS = {"seed": 0, "train.lr": 0.1, "samples_per_step": 4, "data.styles": ("a", "b"), "data.rows": "8 (abc)",
            "x": None}


def test_the_same_settings_go_unmentioned(tmp_path):
    fit(tmp_path, SHORT, **SETTINGS)
    assert notes(tmp_path, **SETTINGS) == ["goes on from checkpoint-4"]


def test_how_the_loop_goes_on_may_change_and_is_told(tmp_path):
    fit(tmp_path, SHORT, **SETTINGS)
    assert notes(tmp_path, **SETTINGS | {"train.lr": 0.2})[0] == "train.lr: 0.1 -> 0.2"


@pytest.mark.parametrize("change", [{"samples_per_step": 8}, {"data.rows": "9 (abd)"}, {"data.styles": ("a",)},
                                    {"seed": 1}, {"x": 3}])
def test_what_makes_it_another_run_is_refused_but_by_the_checkpoints_path(tmp_path, change):
    fit(tmp_path, SHORT, **SETTINGS)
    name = next(iter(change))
    told = refused(tmp_path, code=USAGE, **SETTINGS | change)
    assert f"{name}: " in told and " -> " in told and f"--resume {tmp_path / 'checkpoint-4'}" in told
    assert start(tmp_path, how=str(tmp_path / "checkpoint-4"), **SETTINGS | change).state.step == 4


def test_settings_that_an_older_checkpoint_does_not_know_are_no_change(tmp_path):
    fit(tmp_path, SHORT, **{"seed": 0})
    assert start(tmp_path, **SETTINGS).state.step == 4


# --- what a kill leaves ---


def test_half_written_checkpoints_are_removed(tmp_path):
    for name in (".tmp-checkpoint-4-123", ".tmp-checkpoint-2-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.safetensors").write_bytes(b"x")
    start(tmp_path)
    assert not list(tmp_path.glob(".tmp*"))


def test_rows_of_later_steps_and_cut_rows_are_dropped(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    sound = ['{"step": 1, "l": 1}', '{"step": 2, "l": 1}', '{"step": 2, "psnr": 9}']
    unsound = ["{}", '{"step": "x"}', '{"step": 3, "l": 1}', "[1]", '{"step": 1']
    metrics.write_text("\n".join([*sound[:2], *unsound[:2], sound[2], *unsound[2:]]))
    trim(metrics, 2)
    assert metrics.read_text() == "".join(line + "\n" for line in sound)
    trim(tmp_path / "none.jsonl", 2)
    assert step_of('{"step": 7}') == 7 and step_of("") == -1


def test_too_little_space_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "COPIES", 1 << 50)
    assert "too little disk space" in refused(tmp_path, code=RESOURCE)
