"""`python -m minisd.train`: what it refuses, with which exit code, and one whole run killed from outside."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from minisd.errors import BAD_FILE, INTERRUPTED, NUMERICAL, RESOURCE, USAGE
from minisd.schema import read_file
from minisd.train.__main__ import main
from minisd.train.config import Recipe

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parent / "tiny.toml"


@pytest.fixture
def write(tmp_path):
    """A recipe as a file."""
    def put(recipe):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(asdict(recipe)))
        return path
    return put


@pytest.fixture
def run(pictures, tmp_path, capfd):
    """The exit code, and what is told on stderr of an error."""
    def call(recipe=TINY, *options, data=pictures, out=tmp_path / "out"):
        code = main([str(recipe), "--data", str(data), "--out", str(out), *options])
        told = [line for line in capfd.readouterr().err.splitlines() if line and "%|" not in line]
        assert len(told) <= 6 and not any("Traceback" in line for line in told)
        return code, "\n".join(told)
    return call


def test_a_recipe_runs_and_its_resolved_form_runs_again(run, changed, write, tmp_path):
    assert run(write(changed("vae", steps=2))) == (0, "")
    resolved = tmp_path / "out" / "recipe.json"
    assert read_file(Recipe, resolved) == changed("vae", steps=2)
    assert run(resolved) == (0, "")
    other = tmp_path / "other"
    assert run(resolved, "--stage", "vae", out=other) == (0, "")
    for name in ("vae/checkpoint-2/params.safetensors", "vae/metrics.jsonl", "model/vae.safetensors"):
        assert (other / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("options, code, words", [
    (["--stage", "vea"], USAGE, "it has vae, clip, unet, unet-text"),
    (["--resume", "checkpoint-4"], USAGE, "name it by --stage"),
    (["--resume", "latest"], BAD_FILE, "nothing to resume"),
    (["--stage", "vae", "--resume", "nowhere/checkpoint-4"], BAD_FILE, "no such checkpoint"),
    (["--stage", "clip", "--data", "nowhere"], BAD_FILE, "no such folder"),
    (["--stage", "unet"], USAGE, "run the stages in their order"),
])
def test_what_is_refused(run, options, code, words):
    found, told = run(TINY, *options)
    assert found == code and words in told


def test_files_that_are_refused(run, tmp_path, pictures):
    assert run(tmp_path / "none.toml")[0] == BAD_FILE
    (tmp_path / "bad.toml").write_text("name = ")
    assert run(tmp_path / "bad.toml")[0] == USAGE
    (tmp_path / "wrong.toml").write_text('name = "x"\nstagse = []')
    code, told = run(tmp_path / "wrong.toml")
    assert code == USAGE and "did you mean stages?" in told
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(TINY, data=empty)[0] == BAD_FILE
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file": "0.png"}\n')
    code, told = run(TINY, data=tmp_path / "data")
    assert code == BAD_FILE and "metadata.jsonl:1" in told and "no entry 'text'" in told


def test_a_recipe_by_its_name(run, pictures):
    code, told = run("subjekt")
    assert code == BAD_FILE and "shipped are differential, emoji, flaw, style, subject" in told
    code, told = run("subject", data=pictures / "none")
    assert code == BAD_FILE and "no such folder" in told


def test_an_out_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("")
    assert run(TINY)[0] == RESOURCE


def test_options_are_checked_before_torch_is_imported(tmp_path):
    program = ("import sys; from minisd.train.__main__ import main; code = main(sys.argv[1:]); "
               "sys.exit(100 if 'torch' in sys.modules else code)")
    for options, code in (([str(TINY), "--stage", "x"], USAGE), (["none.toml"], BAD_FILE), ([str(TINY)], BAD_FILE)):
        command = [sys.executable, "-c", program, *options, "--data", str(tmp_path / "none"), "--out", str(tmp_path)]
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == code


def test_numbers_out_of_hand(run, changed, write):
    code, told = run(write(changed("vae", steps=30, lr=1e30, warmup=0, max_bad_steps=3)))
    assert code == NUMERICAL and ("non-finite steps" in told or "not finite" in told)


def test_a_disk_that_is_full(changed, write, child, pictures, tmp_path):
    recipe, out = write(changed("vae", save_every=1)), tmp_path / "out"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        return main([str(recipe), "--data", str(pictures), "--out", str(out)])

    assert child(limited) == RESOURCE
    assert not list(out.rglob("checkpoint-*")) and not list(out.rglob(".tmp*"))


def test_interrupted(changed, write, child, pictures, tmp_path):
    recipe, out = write(changed("clip", steps=100_000)), tmp_path / "out"

    def stopped():
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 2.0)
        return main([str(recipe), "--data", str(pictures), "--out", str(out)])

    assert child(stopped) == INTERRUPTED
    assert list((out / "clip").glob("checkpoint-*/manifest.json"))


def test_a_run_killed_from_outside_at_any_moment_goes_on_to_the_same_model(run, recipe, write, pictures, tmp_path):
    stages = tuple(replace(stage, train=replace(stage.train, steps=6)) for stage in recipe.stages[:2])
    recipe, out = write(replace(recipe, stages=stages)), tmp_path / "cut"
    assert run(recipe) == (0, "")
    command = [sys.executable, "-m", "minisd.train", str(recipe), "--data", str(pictures), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while not list(out.glob("vae/checkpoint-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
    assert run(recipe, "--resume", "latest", out=out) == (0, "")
    for name in ("vae/metrics.jsonl", "vae/checkpoint-6/optimizer.safetensors", "model/vae.safetensors",
                 "clip/metrics.jsonl", "clip/checkpoint-6/ema.safetensors", "model/text.safetensors",
                 "model/config.json"):
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
