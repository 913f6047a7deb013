"""All stages of a recipe in miniature: from pictures to a model that draws, killed and resumed to the bit."""

import json
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from minisd import files as whole_files
from minisd import store
from minisd.config import CLIPVisionConfig
from minisd.errors import INTERRUPTED, NUMERICAL, RESOURCE, USAGE, MinisdError
from minisd.train import loop, stages, state
from minisd.train.stages import train

STAGES = ("vae", "clip", "unet", "unet-text")
BETWEEN = {"log_every": 3, "preview_every": 3}


@pytest.fixture(scope="module")
def trained(recipe, pictures, tmp_path_factory):
    """The folder of a whole run."""
    out = tmp_path_factory.mktemp("trained")
    train(recipe, STAGES, pictures, out, "auto")
    return out


@pytest.fixture
def begun(trained, tmp_path):
    """A run folder with all parts of a model, and no stage begun."""
    def begin(name):
        shutil.copytree(trained / "model", tmp_path / name / "model")
        return tmp_path / name
    return begin


@pytest.fixture(scope="module")
def whole(trained, changed, pictures, tmp_path_factory):
    """The folder of a stage's uninterrupted run, with rows and pictures that fall between the checkpoints."""
    @cache
    def run(stage):
        out = tmp_path_factory.mktemp(stage)
        shutil.copytree(trained / "model", out / "model")
        train(changed(stage, **BETWEEN), [stage], pictures, out, "auto")
        return out
    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files(out, *patterns):
    found = sorted(path for pattern in patterns for path in out.rglob(pattern) if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


# --- in sequence ---


def test_every_stage_leaves_its_parts_rows_and_sheets(trained, recipe):
    assert sorted(path.name for path in (trained / "model").iterdir()) == [
        "config.json", "text.safetensors", "unet.safetensors", "vae.safetensors", "vision.safetensors"]
    measures = {"vae": {"psnr"}, "clip": {"top1", "top5", "of"}, "unet": {"held_out"}, "unet-text": {"held_out"}}
    for stage in STAGES:
        found = rows(trained / stage)
        assert [row["step"] for row in found] == [1, 2, 3, 4, 4]
        assert found[-1].keys() == {"step", "samples", "lr"} | measures[stage]
        assert [path.name for path in state.checkpoints(trained / stage)] == ["checkpoint-4", "checkpoint-2"]
    assert {row["of"] for row in rows(trained / "clip") if "of" in row} == {2}
    sheet = Image.open(trained / "unet" / "samples" / "0000004.png")
    columns = 8 * (64 + 4) - 4
    assert sheet.size == (columns, 64) and len(recipe.preview.prompts) == 3
    assert Image.open(trained / "vae" / "samples" / "0000004.png").height == 64


def test_the_model_draws_and_its_latents_have_unit_spread(trained, recipe, pictures):
    model = store.load(trained / "model", dtype="float32")
    assert model.cfg == replace(recipe.model, latent_scale=model.cfg.latent_scale)
    assert model.txt2img("a red square", steps=2)[0].size == (64, 64)
    _, held_out = stages.sources(recipe, recipe.stage("vae"), pictures)
    latents = model.vae.encode(held_out.batch([0, 1]).pixels).mean
    assert (latents * model.cfg.latent_scale).std().item() == pytest.approx(1, abs=0.01)      # stored in half precision


def test_a_finished_stage_is_left_alone_unless_its_end_has_moved(begun, changed, pictures, capsys):
    out = begun("x")
    for steps, told in ((2, "starts"), (2, "finished before"), (3, "goes on from checkpoint-2")):
        train(changed("clip", steps=steps), ["clip"], pictures, out, "auto")
        assert told in capsys.readouterr().out
    shutil.rmtree(out / "clip" / "checkpoint-3")
    shutil.rmtree(out / "clip" / "checkpoint-2")
    train(changed("clip", steps=9), ["clip"], pictures, out, "auto")          # cleared away to save space
    assert "finished before" in capsys.readouterr().out


def test_a_folder_without_index_words_or_held_out_pictures(recipe, tmp_path, capsys):
    data = tmp_path / "mine"
    data.mkdir()
    for n in range(3):
        Image.new("RGB", (70, 90), (80 * n, 0, 0)).save(data / f"{n}.jpg")
    (data / "0.txt").write_text("a very long caption " * 20)
    (data / "2.jpg").write_bytes(b"broken")
    train(recipe, STAGES, data, tmp_path / "out", "auto")
    told = capsys.readouterr().out
    assert "vae: 3 pictures" in told and "none are held out" in told
    assert "1 of 3 captions have more than 22 tokens and are cut, such as “a very long caption" in told
    assert {"psnr"} < rows(tmp_path / "out" / "vae")[-1].keys()


# --- killed ---


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_the_commit_of_step_2(monkeypatch):
    commit = state.commit
    monkeypatch.setattr(state, "commit", lambda run, s, *rest: commit(run, s, *rest) and s.step == 2 and kill())


def kill_between_two_commits(monkeypatch):
    report = loop.report
    monkeypatch.setattr(loop, "report", lambda run, *a, **o: report(run, *a, **o) or (run.state.step == 3 and kill()))


def kill_after_the_export(monkeypatch):
    monkeypatch.setattr(stages.Path, "touch", kill)


@pytest.mark.parametrize("kill_at", [kill_after_the_commit_of_step_2, kill_between_two_commits, kill_after_the_export])
@pytest.mark.parametrize("stage", STAGES)
def test_four_steps_are_two_a_kill_and_two_to_the_bit(begun, changed, pictures, child, whole, stage, kill_at):
    """Weights, average, optimiser, log, sample pictures and what is exported."""
    recipe, cut = changed(stage, **BETWEEN), begun("cut")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch)
        assert child(lambda: train(recipe, [stage], pictures, cut, "auto")) == -signal.SIGKILL
    assert child(lambda: train(recipe, [stage], pictures, cut, "latest")) == 0
    expected, found = (files(out, "*.safetensors", "*.jsonl", "*.png", "config.json") for out in (whole(stage), cut))
    assert expected.keys() == found.keys() and len(expected) >= 12
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_unet_learns_in_bfloat16_weights_too(begun, changed, pictures, child):
    """Measured, drawn with and taken home; killed and resumed to the same bits. Other stages have nothing to save."""
    recipe, whole, cut = changed("unet", weights="bf16", **BETWEEN), begun("whole"), begun("cut")
    train(recipe, ["unet"], pictures, whole, "auto")
    with pytest.MonkeyPatch.context() as patch:
        kill_between_two_commits(patch)
        assert child(lambda: train(recipe, ["unet"], pictures, cut, "auto")) == -signal.SIGKILL
    assert child(lambda: train(recipe, ["unet"], pictures, cut, "latest")) == 0
    expected, found = (files(out, "*.safetensors", "*.jsonl", "*.png") for out in (whole, cut))
    assert expected.keys() == found.keys() and [name for name in expected if expected[name] != found[name]] == []
    held_out = [row["held_out"] for row in rows(whole / "unet") if "held_out" in row]
    assert len(held_out) > 1 and held_out[-1] != held_out[0]
    with pytest.raises(ValueError, match="weights in bf16 are for whole UNets"):
        changed("clip", weights="bf16")


def test_another_seed_is_another_run(begun, changed, pictures):
    runs = {}
    for seed in (3, 4):
        runs[seed] = begun(str(seed))
        train(replace(changed("unet"), seed=seed), ["unet"], pictures, runs[seed], "auto")
    name = "unet/checkpoint-4/params.safetensors"
    assert (runs[3] / name).read_bytes() != (runs[4] / name).read_bytes()


@pytest.mark.parametrize("moved", [False, True])
def test_killed_while_parts_are_exported(begun, changed, pictures, child, whole, monkeypatch, moved):
    """The model folder is the old one or the new one, and the stage puts its parts in place when it is resumed."""
    recipe, out, move = changed("clip", **BETWEEN), begun("cut"), whole_files.move

    def killing(new, target):
        if moved:
            move(new, target)
        if target == out / "model":
            kill()
        move(new, target)

    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "move", killing)
        assert child(lambda: train(recipe, ["clip"], pictures, out, "auto")) == -signal.SIGKILL
    assert store.load(out / "model").cfg.size == 64
    train(recipe, ["clip"], pictures, out, "auto")
    assert files(out / "model", "*") == files(whole("clip") / "model", "*")


# --- refused and stopped ---


def failure(work):
    with pytest.raises(MinisdError) as error:
        work()
    return error.value


def test_one_folder_one_run(begun, changed, pictures):
    out = begun("x")
    with stages.locked(out / "clip"):
        error = failure(lambda: train(changed("clip"), ["clip"], pictures, out, "auto"))
    assert error.code == RESOURCE and f"process {os.getpid()} on " in error.why
    train(changed("clip"), ["clip"], pictures, out, "auto")


def test_a_dead_runs_lock_is_free(begun, changed, pictures, child):
    out = begun("x")

    def die():
        with stages.locked(out / "clip"):
            kill()

    assert child(die) == -signal.SIGKILL
    train(changed("clip"), ["clip"], pictures, out, "auto")


def test_a_signal_saves_and_a_full_disk_leaves_the_last_checkpoint(begun, changed, pictures, child, whole, monkeypatch):
    out, recipe, update = begun("x"), changed("unet", log_every=3, preview_every=0), loop.update

    def signalled(run, ahead):
        update(run, ahead)
        if run.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", signalled)
        assert child(lambda: train(recipe, ["unet"], pictures, out, "auto")) == INTERRUPTED
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert child(lambda: train(recipe, ["unet"], pictures, out, "auto")) == RESOURCE
    assert [path.name for path in state.checkpoints(out / "unet")] == ["checkpoint-3", "checkpoint-2"]
    assert state.verify(out / "unet" / "checkpoint-3") is None
    train(recipe, ["unet"], pictures, out, "auto")
    names = ("checkpoint-4/params.safetensors", "checkpoint-4/ema.safetensors", "checkpoint-4/optimizer.safetensors")
    assert all((out / "unet" / name).read_bytes() == (whole("unet") / "unet" / name).read_bytes() for name in names)


def test_whatever_the_system_refuses_is_a_resource_error(begun, changed, pictures, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "lock")

    monkeypatch.setattr(stages.fcntl, "flock", refuse)
    error = failure(lambda: train(changed("clip"), ["clip"], pictures, begun("x"), "auto"))
    assert error.code == RESOURCE and (error.where, error.why) == ("lock", "Permission denied")


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_ends_with_its_own_code(begun, changed, pictures, stage):
    out = begun("x")
    error = failure(lambda: train(changed(stage, steps=30, lr=1e30, warmup=0, max_bad_steps=2), [stage], pictures, out,
                                  "auto"))
    assert error.code == NUMERICAL
    assert all(state.verify(path) is None for path in state.checkpoints(out / stage))


def test_stages_out_of_order(recipe, pictures, tmp_path):
    error = failure(lambda: train(recipe, ["unet"], pictures, tmp_path, "auto"))
    assert error.code == USAGE and "the model has no vae yet" in error.what


def test_parts_of_another_recipe(begun, recipe, changed, pictures):
    out = begun("x")
    other = replace(recipe.model, vision=CLIPVisionConfig(64, 16, 16, 1, 2, "gelu", 16))
    error = failure(lambda: train(replace(changed("vae"), model=other), ["vae"], pictures, out, "auto"))
    assert error.code == USAGE and "the model's vision is not the recipe's" in error.what


def test_a_unet_that_is_made_anew_may_be_another(begun, recipe, changed, pictures):
    out = begun("x")
    other = replace(recipe.model, unet=replace(recipe.model.unet, widths=(8, 16)))
    train(replace(changed("unet"), model=other), ["unet"], pictures, out, "auto")
    assert store.load(out / "model").unet.cfg.widths == (8, 16)


def test_latest_needs_a_beginning_and_never_needs_none(begun, changed, pictures):
    out = begun("x")
    assert "nothing to resume" in failure(lambda: train(changed("clip"), ["clip"], pictures, out, "latest")).what
    train(changed("clip"), ["clip"], pictures, out, "never")
    assert failure(lambda: train(changed("clip"), ["clip"], pictures, out, "never")).code == USAGE
    train(changed("clip"), ["clip"], pictures, out, "latest")


def test_other_pictures_are_another_run(begun, changed, pictures, tmp_path):
    out = begun("x")
    train(changed("clip", steps=2), ["clip"], pictures, out, "auto")
    more = tmp_path / "more"
    shutil.copytree(pictures, more)
    with (more / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file": "0.png", "text": "once more"}) + "\n")
    error = failure(lambda: train(changed("clip"), ["clip"], more, out, "auto"))
    assert error.code == USAGE and 'data.rows: "6 (' in error.why and '-> "7 (' in error.why
    train(changed("clip"), ["clip"], more, out, str(out / "clip" / "checkpoint-2"))


def test_a_random_start_does_not_touch_the_callers_random_numbers(begun, changed, pictures):
    out = begun("x")
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with suppress(MinisdError):
        train(changed("vae"), ["vae"], pictures, out, "auto")
    assert torch.equal(torch.random.get_rng_state(), before)
