"""`python -m minisd.distill`: what it refuses, with which exit code; a run killed from outside; its other commands."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny_model
import torch
from PIL import Image
from safetensors.torch import load_file

from minisd import store
from minisd.distill import main
from minisd.errors import BAD_FILE, USAGE
from minisd.train.config import DataConfig, TrainConfig
from minisd.train.experiment import Experiment

ROOT = Path(__file__).parent.parent
TRAIN = TrainConfig(steps=6, batch=2, dtype="fp32", warmup=0, save_every=1, preview_every=3, log_every=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(colour)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """An experiment on a tiny teacher, as a file."""
    folder = tmp_path_factory.mktemp("recipe")
    teacher = tiny_model.folder(folder)
    path = folder / "recipe.json"
    path.write_text(json.dumps(asdict(Experiment("x", str(teacher), train=TRAIN, data=DataConfig(size=64)))))
    return path


@pytest.fixture
def run(data, tmp_path, capfd):
    """The exit code, and what is told: on stdout, and on stderr without bars."""
    def call(*options, out="out", given=data):
        code = main([*map(str, options), "--data", str(given), "--out", str(tmp_path / out)])
        told = capfd.readouterr()
        errors = [line for line in told.err.splitlines() if line and "%|" not in line]
        assert len(errors) <= 6 and not any("Traceback" in line for line in errors)
        return code, told.out + "\n".join(errors)
    return call


def test_a_run_exported_and_drawn_with(run, recipe, tmp_path, capfd):
    assert run(recipe, "--max-steps", "2")[0] == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {"model", "report.html", "recipe.json", "checkpoint-2"}
    assert store.load(out / "model").unet.cfg.mid_depth is None
    assert "goes on from checkpoint-2" in run(recipe, "--max-steps", "3")[1]
    assert main(["export", str(out / "checkpoint-3"), str(tmp_path / "taken"), "--raw"]) == 0
    assert "raw weights" in capfd.readouterr().out and store.load(tmp_path / "taken").cfg.size == 64
    assert run(out / "recipe.json", "--start", out, out="second")[0] == 0


def test_without_data_the_teacher_draws_for_the_captions_that_come_with_it(recipe, tmp_path, capfd):
    teacher = Path(json.loads(recipe.read_text())["teacher"])
    options = [str(recipe), "--max-steps", "2", "--out", str(tmp_path / "out")]
    assert main(options) == USAGE
    assert "name by --data" in capfd.readouterr().err
    own = shutil.copytree(teacher, tmp_path / "own")
    (own / "captions.txt").write_text("a red square\na blue disc\n")
    assert main([*options, "--teacher", str(own)]) == 0
    assert "2 (" in (told := capfd.readouterr().out) and "captions, drawn by the teacher with" in told
    assert main(["sensitivity", "--teacher", str(own), "--samples", "4", "--cache", str(tmp_path / "cache")]) == 0
    assert "attn.1" in capfd.readouterr().out


def test_bfloat16_weights_measured_shown_resumed_and_exported(run, recipe, tmp_path, capfd):
    """Of 4 steps at once, and of 2 and 2: every file is the same; what is taken home loads."""
    experiment = json.loads(recipe.read_text())
    experiment["train"] |= {"dtype": "bf16", "weights": "bf16", "recompute": True}
    rounded = tmp_path / "rounded.json"
    rounded.write_text(json.dumps(experiment))
    assert run(rounded, "--max-steps", "4")[0] == 0
    assert run(rounded, "--max-steps", "2", out="cut")[0] == 0
    assert run(rounded, "--max-steps", "4", "--resume", "latest", out="cut")[0] == 0
    whole, cut = tmp_path / "out", tmp_path / "cut"
    for name in ("params", "ema", "optimizer"):
        one, other = ((folder / "checkpoint-4" / f"{name}.safetensors").read_bytes() for folder in (whole, cut))
        assert one == other, name
    assert load_file(whole / "checkpoint-4" / "params.safetensors")["conv_in.weight"].dtype == torch.bfloat16
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held_out/noise" in row] == [0, 3, 4]
    assert store.load(whole / "model").unet.cfg.mid_depth is None


@pytest.mark.parametrize("options, code, words", [
    (["exp9999"], BAD_FILE, "shipped are"), (["exp0001", "--max-steps", "0"], USAGE, "give at least 1"),
    (["exp0001", "--teacher", "none.safetensors"], BAD_FILE, "no such model"),
    (["exp0001", "--resume", "latest"], BAD_FILE, "nothing to resume"),
    (["exp0002"], USAGE, "no such run to begin from"),
    (["exp0001", "--device", "tpu"], USAGE, "no device is called"),
])
def test_what_is_refused(run, options, code, words):
    found, told = run(*options)
    assert found == code and words in told


def test_data_that_is_none(run, tmp_path):
    assert run("exp0001", given=tmp_path / "none")[0] == BAD_FILE
    (tmp_path / "empty").mkdir()
    assert run("exp0001", given=tmp_path / "empty")[0] == BAD_FILE


def test_options_are_checked_before_torch_is_imported(tmp_path):
    program = ("import sys; from minisd.distill import main; code = main(sys.argv[1:]); "
               "sys.exit(100 if 'torch' in sys.modules else code)")
    for options, code in ((["exp9999"], BAD_FILE), (["exp0001"], BAD_FILE), (["exp0001", "--max-steps", "0"], USAGE)):
        command = [sys.executable, "-c", program, *options, "--data", str(tmp_path / "none")]
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == code


def test_killed_from_outside_at_any_moment_it_goes_on_to_the_same_model(run, recipe, data, tmp_path):
    assert run(recipe)[0] == 0
    command = [sys.executable, "-m", "minisd.distill", str(recipe), "--data", str(data), "--out", str(tmp_path / "cut")]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / "cut").glob("checkpoint-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        process.kill()
    assert run(recipe, "--resume", "latest", out="cut")[0] == 0
    names = ("metrics.jsonl", "checkpoint-6/params.safetensors", "checkpoint-6/ema.safetensors",
             "checkpoint-6/optimizer.safetensors", "model/unet.safetensors", "model/config.json")
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_two_ranks_started_by_torchrun(recipe, data, tmp_path):
    """The whole program: losses and weights are those of one process with twice the passes."""
    ranks = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
             "--rdzv-endpoint", "localhost:0"]
    experiment = json.loads(recipe.read_text())
    experiment["train"]["accumulate"] = 2
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(experiment))
    told = []
    for start, file, out in ((ranks, recipe, "two"), ([], alone, "one")):
        command = [sys.executable, *start, "-m", "minisd.distill", str(file), "--data", str(data),
                   "--out", str(tmp_path / out), "--max-steps", "2"]
        # Sums of several threads round otherwise than those of one.
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(done.stdout)
    for name in ("metrics.jsonl", "checkpoint-2/params.safetensors", "checkpoint-2/ema.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert told[0].count("the student begins with") == 1


def test_sensitivity(data, recipe, tmp_path, capfd):
    teacher = json.loads(recipe.read_text())["teacher"]
    options = ["sensitivity", "--teacher", teacher, "--data", str(data), "--samples", "4", "--cache", str(tmp_path)]
    assert main([*options, "--budget", "0.8", "--out", str(tmp_path / "found.json")]) == 0
    told = capfd.readouterr().out
    assert "remove = [" in told and "attn.1" in told and "protocol" in told
    found = json.loads((tmp_path / "found.json").read_text())
    assert [cut["name"] for cut in found["cuts"]] == ["mid", "attn.1", "stage.1"]
    assert main([*options, "--budget", "1.5"]) == USAGE
