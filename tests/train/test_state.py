"""Checkpoints: whole or not there, whatever happens while one is written; what is damaged is never used."""

import errno
import json
import os
import random
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minisd.errors import NUMERICAL, RESOURCE, USAGE, MinisdError
from minisd.train import state
from minisd.train.config import TrainConfig
from minisd.train.state import State, checkpoints, commit, newest, verify

STEPS_OF_A_SAVE = ("save_file", "digest", "sync", "drop", "checkpoints")


def trained(step=1, width=8, seed=0):
    """A state that has made some updates; the module's last bias has never had a gradient."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, width, 3).to(memory_format=torch.channels_last)
    module = nn.ModuleDict({"conv": conv, "idle": nn.Linear(2, 2)})
    module.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    made = State.new(module, TrainConfig())
    for _ in range(step):
        (module["conv"](torch.randn(2, 3, 8, 8)).square().mean() * module.scale).backward()
        made.optimizer.step()
        made.optimizer.zero_grad()
    made.ema["scale"].fill_(1.5)
    made.step = step
    return made


def equal(a, b):
    one, two = a.tensors(), b.tensors()
    return a.step == b.step and all(one[part].keys() == two[part].keys() and all(
        torch.equal(t, two[part][name]) for name, t in one[part].items()) for part in one)


def restored(path, **options):
    fresh = trained(0, seed=1, **options)
    fresh.restore(path)
    return fresh


# --- there and back ---


def test_a_state_survives_to_the_bit(tmp_path):
    made = trained(3)
    path = commit(tmp_path, made, 2, {"seed": 5})
    back = restored(path)
    assert equal(made, back) and back.step == 3
    slots = back.optimizer.state[back.params["conv.weight"]]
    assert slots["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert state.read_manifest(path)["seed"] == 5
    assert not back.optimizer.state[back.params["idle.weight"]]


def test_a_restored_state_goes_on_as_if_nothing_had_happened(tmp_path):
    made = trained(2)
    back = restored(commit(tmp_path, made, 2, {}))
    for one in (made, back):
        torch.manual_seed(7)
        for p in one.params.values():
            p.grad = torch.randn(p.shape)
        one.optimizer.step()
    assert equal(made, back)


def test_another_models_checkpoint_is_refused(tmp_path):
    path = commit(tmp_path, trained(1), 2, {})
    with pytest.raises(MinisdError, match="belongs to another model") as error:
        restored(path, width=16)
    assert error.value.code == USAGE and "conv." in error.value.why


def test_as_many_are_kept_as_asked_for_and_nothing_else_stays(tmp_path):
    for step in range(1, 6):
        made = trained(1)
        made.step = step
        commit(tmp_path, made, 3, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-4", "checkpoint-3"]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]


def test_damaged_newer_ones_do_not_push_out_the_good(tmp_path):
    for step in (9, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    made = trained(1)
    commit(tmp_path, made, 2, {})
    assert verify(tmp_path / "checkpoint-1") is None and newest(tmp_path)[0] == tmp_path / "checkpoint-1"


# --- numbers that are not finite ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["params", "ema", "optimizer"])
def test_a_number_that_is_not_finite_is_never_committed(tmp_path, part, bad):
    commit(tmp_path, trained(1), 2, {})
    made = trained(2)
    with torch.no_grad():
        tensors = made.tensors()[part]
        tensors["conv.weight:exp_avg" if part == "optimizer" else "conv.weight"][0, 1, 2, 0] = bad
    with pytest.raises(MinisdError, match=f"{part} of step 2 are not finite") as error:
        commit(tmp_path, made, 2, {})
    assert error.value.code == NUMERICAL
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1"]


# --- killed while saving ---


def test_files_folder_and_parent_reach_the_disk_before_older_ones_go(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(state, "sync", lambda path: done.append(path.name))
    monkeypatch.setattr(state, "drop", lambda path: done.append(f"drop {path.name}"))
    made = trained(1)
    for made.step in (1, 2):
        commit(tmp_path, made, 1, {})
    second = done[7:]
    assert set(second[:4]) == {"params.safetensors", "ema.safetensors", "optimizer.safetensors", "manifest.json"}
    assert second[4].startswith(".tmp-checkpoint-2")
    assert second[5:] == ["drop checkpoint-2", tmp_path.name, "drop checkpoint-1"]


def killed_at(folder, made, event):
    """Commit, and be killed at the n-th thing that a save does."""
    count = iter(range(event + 1))

    def killing(inner):
        def wrapped(*args):
            if next(count) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*args)
        return wrapped

    for name in STEPS_OF_A_SAVE:
        setattr(state, name, killing(getattr(state, name)))
    commit(folder, made, 2, {})


def test_killed_at_each_event_of_a_save(tmp_path, child):
    """The newest that verifies is the one before or the new one; and the next save cleans up."""
    before = [trained(1), trained(2)]
    made, finished, saved = trained(3), 0, 0
    for event in range(40):
        folder = tmp_path / str(event)
        for one in before:
            commit(folder, one, 2, {})
        code = child(lambda folder=folder, event=event: killed_at(folder, made, event))
        path, skipped = newest(folder)
        assert not skipped and len(checkpoints(folder)) >= 2
        assert equal(restored(path), made if path.name == "checkpoint-3" else before[1])
        saved += code != 0 and path.name == "checkpoint-3"
        state.sweep(folder)
        commit(folder, made, 2, {})
        assert sorted(os.listdir(folder)) == ["checkpoint-2", "checkpoint-3"]
        finished += code == 0
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert finished == 1 and event >= 12 and saved >= 1    # some kills came after the rename


def test_killed_at_random_moments_of_a_save(tmp_path, child):
    random.seed(0)
    before, made = trained(1, width=4096), trained(2, width=4096)
    commit(tmp_path, before, 2, {})
    began = time.perf_counter()
    commit(tmp_path / "timed", made, 2, {})
    duration = time.perf_counter() - began

    def save_until_killed(delay):
        signal.setitimer(signal.ITIMER_REAL, delay)        # SIGALRM, which nobody handles, ends the process
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        commit(tmp_path, made, 2, {})

    codes = [child(lambda: save_until_killed(random.uniform(1e-4, duration))) for _ in range(10)]
    assert -signal.SIGALRM in codes
    path, skipped = newest(tmp_path)
    assert not skipped and equal(restored(path, width=4096), made if path.name == "checkpoint-2" else before)


# --- the disk is full ---


@pytest.mark.parametrize("event", range(14))
def test_the_disk_is_full_at_any_event_of_a_save(tmp_path, monkeypatch, event):
    commit(tmp_path, trained(1), 2, {})
    count = iter(range(1000))

    def refusing(inner):
        def wrapped(*args):
            if next(count) == event:
                raise OSError(errno.ENOSPC, "No space left on device")
            return inner(*args)
        return wrapped

    for name in ("save_file", "digest", "sync"):
        monkeypatch.setattr(state, name, refusing(getattr(state, name)))
    try:
        commit(tmp_path, trained(2), 2, {})
    except MinisdError as error:
        assert error.code == RESOURCE and "No space left" in error.why
    monkeypatch.undo()
    path, skipped = newest(tmp_path)
    assert not skipped and equal(restored(path), trained(state.number(path)))
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize("limit", [1000, 3000, 20_000])
def test_a_file_may_not_grow_further(tmp_path, child, limit):
    made = trained(1, width=256)
    commit(tmp_path, made, 2, {})
    made.step = 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        commit(tmp_path, made, 2, {})

    assert child(limited) == RESOURCE
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1"] and verify(tmp_path / "checkpoint-1") is None


def test_too_little_space_is_said_at_the_start(tmp_path, monkeypatch):
    state.check_space(tmp_path, trained(0), 2)
    monkeypatch.setattr(state.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(MinisdError, match="too little disk space") as error:
        state.check_space(tmp_path, trained(0), 2)
    assert error.value.code == RESOURCE and "0 MB are free" in error.value.why


# --- damage ---


def damages(path):
    """A hundred ways to damage a checkpoint."""
    random.seed(1)
    files = sorted(file.name for file in path.iterdir())
    for n in range(100):
        target = path / files[n % len(files)]
        data = bytearray(target.read_bytes())
        kind = n // len(files) % 4
        if kind == 0:
            data = data[:random.randrange(len(data))]
        elif kind == 1:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif kind == 2:
            data += b"\0"
        yield target, None if kind == 3 else bytes(data)


def test_a_damaged_newest_is_passed_over_and_told(tmp_path):
    """Or the damage has changed nothing, such as a blank in the manifest."""
    first, second = trained(1), trained(2)
    commit(tmp_path, first, 2, {})
    path = commit(tmp_path, second, 2, {"settings": {"a": [1, 2.5, None]}})
    told = 0
    for target, data in damages(path):
        whole = target.read_bytes()
        target.unlink()
        if data is not None:
            target.write_bytes(data)
        found, skipped = newest(tmp_path)
        if found == path:
            assert target.name == "manifest.json" and equal(restored(path), second)
        else:
            assert equal(restored(found), first) and list(skipped) == [path] and skipped[path]
            told += 1
        target.write_bytes(whole)
    assert told >= 95


def test_a_manifest_that_tells_another_story_is_not_believed(tmp_path):
    path = commit(tmp_path, trained(2), 2, {"unlogged": {"l1": [0.5]}})
    for change in ({"step": 3}, {"unlogged": {"l1": [0.25]}}, {"files": {}}, {"files": None}):
        manifest = state.read_manifest(path)
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        assert verify(path)
        (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify(path) is None
    assert verify(path.rename(tmp_path / "checkpoint-7"))
    (tmp_path / "checkpoint-8").write_text("a file")
    (tmp_path / "checkpoint-x").mkdir()
    assert newest(tmp_path)[0] is None


def test_files_are_safetensors_that_anyone_can_read(tmp_path):
    path = commit(tmp_path, trained(2), 2, {})
    assert load_file(path / "ema.safetensors")["scale"].item() == 1.5
    assert load_file(path / "params.safetensors")["conv.weight"].shape == (8, 3, 3, 3)
