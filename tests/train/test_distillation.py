"""Whole experiments in miniature: killed and resumed to the bit, started from one another, exported, drawn with."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import tiny_model
import torch
from PIL import Image
from safetensors.torch import load_file

from minisd import store
from minisd.errors import INTERRUPTED, NUMERICAL, RESOURCE, USAGE, MinisdError
from minisd.fast import backward, columns, learning
from minisd.fast.onednn import computes
from minisd.train import distillation, loop, state
from minisd.train.config import DataConfig, Preview, TrainConfig
from minisd.train.distillation import Place, distill, take_home
from minisd.train.experiment import DistillTask, Experiment, Student

TRAIN = TrainConfig(steps=4, batch=2, accumulate=2, lr=1e-3, warmup=2, dtype="fp32", save_every=2, preview_every=3,
                    log_every=3, shares_every=2, spike=50.0)
SHOWN = Preview(("a red square",), steps=1, guidance=2.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model.folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def experiment(teacher):
    """Every option that draws random numbers is used."""
    def make(remove=("midless",), start="", options=None, **train):
        return Experiment("x", str(teacher), Student(remove, start), replace(TRAIN, **train),
                          DataConfig(size=64, flip=True),
                          DistillTask(**{"empty_captions": 0.2, "random_captions": 2.0} | (options or {})), SHOWN, 3)
    return make


@pytest.fixture
def place(pictures, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "distill-cache"
    return lambda out, data=pictures: Place(data, out, cache)


def files(out):
    found = [path for pattern in ("*.safetensors", "*.jsonl", "*.png", "config.json") for path in out.rglob(pattern)]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(found)}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def failure(work):
    with pytest.raises(MinisdError) as error:
        work()
    return error.value


@pytest.mark.slow
@pytest.mark.skipif(not computes(torch.bfloat16), reason="oneDNN does not compute in bfloat16 here")
def test_gradients_of_its_own_go_on_to_the_bit(experiment, place, tmp_path, monkeypatch):
    """As students of full size are trained: 4 steps are 2, and 2 more in a run that goes on."""
    entered = []
    for function in (columns.Columns, backward.Attended):
        monkeypatch.setattr(function, "apply", lambda *args, own=function.apply: entered.append(own) or own(*args))
    for module, name in ((columns, "MANY"), (backward, "LARGE")):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(learning, "worthwhile", lambda: True)
    options = {"dtype": "bf16", "weights": "bf16", "recompute": True, "preview_every": 0}
    distill(experiment(**options), place(tmp_path / "whole"), "auto")
    assert len(set(entered)) == 2
    for steps in (2, 4):
        distill(experiment(steps=steps, **options), place(tmp_path / "parts"), "auto")
    whole, parts = (load_file(tmp_path / name / "checkpoint-4" / "params.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_run_and_its_student(experiment, place, teacher, tmp_path, capsys):
    out = tmp_path / "a"
    distill(experiment(), place(out), "auto")
    told = capsys.readouterr().out
    assert "the student without midless" in told and "averaged weights, is" in told and "6 (" in told
    found = rows(out)
    assert [row["step"] for row in found] == [0, 3, 3, 4, 4]
    untrained = {name: value for name, value in found[0].items() if name.startswith("held_out/")}
    assert untrained.keys() == {f"held_out/{name}" for name in ("noise", "output", "features")}
    assert untrained["held_out/output"] > 0 and {"noise", "output", "features", "share/output"} < found[3].keys()
    model, whole = store.load(out / "model", dtype="float32"), store.load(teacher, dtype="float32")
    assert model.unet.cfg == replace(whole.unet.cfg, mid_depth=None) and model.cfg.vision is None
    averaged = load_file(out / "checkpoint-4" / "ema.safetensors")
    assert all(torch.equal(p, averaged[name].half().float()) for name, p in model.unet.named_parameters())
    assert model.txt2img("a red square", steps=1)[0].size == (64, 64)
    assert (out / "report.html").is_file() and Image.open(out / "samples" / "0000004.png").width == 3 * 68 - 4
    distill(experiment(), place(out), "auto")
    assert "finished before" in capsys.readouterr().out
    # the same student, cut again: a student is a teacher too
    again = replace(experiment(("attn.1",)), teacher=str(out / "model"))
    distill(replace(again, train=replace(TRAIN, steps=1)), place(tmp_path / "b"), "never")
    assert store.read_config(tmp_path / "b" / "model").unet.depths == (0, 0)


def test_what_it_learns_from_the_teacher_brings_it_nearer(experiment, place, tmp_path):
    options = {"noise": 0.0, "empty_captions": 0.0, "random_captions": None}
    distill(experiment(options=options, steps=60, lr=3e-4, ema=0.9, save_every=60, preview_every=0), place(tmp_path),
            "auto")
    first, last = rows(tmp_path)[0], rows(tmp_path)[-1]
    for name in ("held_out/output", "held_out/features"):
        assert last[name] < 0.7 * first[name], name


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_the_commit_of_step_2(monkeypatch):
    commit = state.commit
    monkeypatch.setattr(state, "commit", lambda run, s, *rest: commit(run, s, *rest) and s.step == 2 and kill())


def kill_between_two_commits(monkeypatch):
    report = loop.report
    monkeypatch.setattr(loop, "report", lambda run, *a, **o: report(run, *a, **o) or (run.state.step == 3 and kill()))


def kill_after_the_untrained_scores(monkeypatch):
    monkeypatch.setattr(loop, "fit", kill)


def kill_in_the_first_preview(monkeypatch):
    monkeypatch.setattr(loop, "record", kill)


@pytest.mark.parametrize("kill_at", [kill_after_the_commit_of_step_2, kill_between_two_commits,
                                     kill_after_the_untrained_scores, kill_in_the_first_preview])
def test_four_steps_are_two_a_kill_and_two_to_the_bit(experiment, place, tmp_path, child, kill_at):
    """Weights, average, optimiser, log, sheets and what is exported."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert child(lambda: distill(experiment(), place(whole), "auto")) == 0
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch)
        assert child(lambda: distill(experiment(), place(cut), "auto")) == -signal.SIGKILL
    assert child(lambda: distill(experiment(), place(cut), "auto")) == 0
    expected, found = files(whole), files(cut)
    assert expected.keys() == found.keys() and len(expected) >= 14
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_signal_saves_and_a_full_disk_leaves_the_last_checkpoint(experiment, place, tmp_path, child, monkeypatch):
    update = loop.update

    def signalled(run, ahead):
        update(run, ahead)
        if run.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", signalled)
        assert child(lambda: distill(experiment(), place(tmp_path), "auto")) == INTERRUPTED
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert child(lambda: distill(experiment(), place(tmp_path), "auto")) == RESOURCE
    assert [path.name for path in state.checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    assert all(state.verify(path) is None for path in state.checkpoints(tmp_path))


def test_numbers_out_of_hand_are_never_committed(experiment, place, tmp_path):
    run = experiment(lr=1e30, warmup=0, max_bad_steps=2, steps=30, spike=0.0, preview_every=0)
    error = failure(lambda: distill(run, place(tmp_path), "auto"))
    assert error.code == NUMERICAL
    assert all(state.verify(path) is None for path in state.checkpoints(tmp_path))


def test_the_second_phase_begins_with_the_first_ones_average(experiment, place, tmp_path, monkeypatch):
    distill(experiment(steps=2), place(tmp_path / "first"), "auto")
    begun = []
    monkeypatch.setattr(loop, "fit", lambda run: begun.append(run))
    for start in ("first", "first/checkpoint-2", str(tmp_path / "first")):
        distill(experiment(start=start), place(tmp_path / "second"), "auto")
        shutil.rmtree(tmp_path / "second")
    averaged = load_file(tmp_path / "first" / "checkpoint-2" / "ema.safetensors")
    for run in begun:
        assert all(torch.equal(p, averaged[name]) for name, p in run.state.params.items())
        assert all(torch.equal(p, averaged[name]) for name, p in run.state.ema.items())
        assert not run.state.optimizer.state and run.state.step == 0
    other = failure(lambda: distill(experiment(("attn.1",), "first"), place(tmp_path / "third"), "auto"))
    assert "of another student" in other.what and other.code == USAGE
    none = failure(lambda: distill(experiment(start="none"), place(tmp_path / "third"), "auto"))
    assert "no such run to begin from" in none.what
    (tmp_path / "first" / "checkpoint-2" / "ema.safetensors").write_bytes(b"x")
    assert "no checkpoint to begin from" in failure(
        lambda: distill(experiment(start="first"), place(tmp_path / "third"), "auto")).what


def test_captions_alone_are_enough(experiment, place, tmp_path):
    (tmp_path / "captions.txt").write_text("a red square\na blue disc\n")
    there = place(tmp_path / "x", tmp_path / "captions.txt")
    distill(experiment(options={"images": "teacher"}, steps=2), there, "auto")
    assert rows(tmp_path / "x")[0]["held_out/output"] > 0


def test_a_checkpoint_is_taken_home_raw_or_averaged(experiment, place, tmp_path):
    distill(experiment(steps=2), place(tmp_path / "x"), "auto")
    checkpoint = tmp_path / "x" / "checkpoint-2"
    for raw, name in ((False, "ema"), (True, "params")):
        told = take_home(checkpoint, tmp_path / name, raw)
        assert ("raw" in told) == raw and ("averaged" in told) != raw
        expected = load_file(checkpoint / f"{name}.safetensors")
        unet = store.load(tmp_path / name, dtype="float32").unet
        assert all(torch.equal(p, expected[key].half().float()) for key, p in unet.named_parameters())
    assert "nothing is overwritten" in failure(lambda: take_home(checkpoint, tmp_path / "ema", False)).why


def test_other_settings_are_another_run(experiment, place, tmp_path):
    distill(experiment(steps=2), place(tmp_path), "auto")
    error = failure(lambda: distill(experiment(options={"features": 0.5}), place(tmp_path), "auto"))
    assert error.code == USAGE and "distill.features: 1.0 -> 0.5" in error.why
    assert "nothing to resume" in failure(lambda: distill(experiment(), place(tmp_path / "new"), "latest")).what


def test_the_untrained_student_is_the_bar(experiment, place, tmp_path):
    """Step 0 measures exactly what surgery leaves."""
    distill(experiment(steps=1), place(tmp_path), "auto")
    run = distillation.prepared(experiment(), place(tmp_path), distillation.Ranks())
    with distillation.attention(run):
        measured = run.task.measure()
    first = rows(tmp_path)[0]
    assert first == {"step": 0, "samples": 0, "lr": 0} | {name: float(f"{value:.6g}")
                                                          for name, value in measured.items()}
