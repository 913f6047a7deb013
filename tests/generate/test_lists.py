"""Lists of prompts: what is there is not drawn again, and several processes draw what one would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minisd import images
from minisd.drawing import metadata
from minisd.drawing.plan import Drawing
from minisd.generate.__main__ import main
from minisd.generate.gallery import Key, places
from minisd.generate.source import device_of
from minisd.pipeline import StableDiffusion
from minisd.shares import Share

ROOT = Path(__file__).parents[2]
PROMPTS = "a red apple\n\na blue car\na green tree with very many leaves on its branches and twigs\na dog\na cat\n"
ARGS = ("--steps", "2", "--sampler", "euler a", "--count", "3", "--batch", "2", "--seed", "5", "--dtype", "float32")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\ufeff" + PROMPTS.replace("\n", "\r\n"), encoding="utf-8")
    return tmp_path / "prompts.txt"


@pytest.fixture
def calls(monkeypatch) -> list[list[Drawing]]:
    """The batches that were drawn."""
    seen, plain = [], StableDiffusion.draw

    def recording(self, drawings, *rest):
        seen.append(list(drawings))
        return plain(self, drawings, *rest)

    monkeypatch.setattr(StableDiffusion, "draw", recording)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def processes(world: int, model: str, out: Path, *args: str) -> list[tuple[int, str, str]]:
    """The program in several processes at once: of each the exit code, and what it says."""
    command = [sys.executable, "-m", "minisd.generate", *args, "--model", model, "--out", str(out), "--device", "cpu"]
    started = [subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(world)})
        for rank in range(world)]
    told = [process.communicate(timeout=240) for process in started]
    return [(process.returncode, *said) for process, said in zip(started, told, strict=True)]


def test_a_list_is_numbered_in_order(draw, out, prompts) -> None:
    assert draw("first of all", "--prompts", str(prompts), "--steps", "1", "--count", "2") == 0
    assert sorted(files(out)) == [f"{n:05d}-{(n - 1) % 2}.png" for n in range(1, 13)]
    told = [metadata.read_drawn(path).drawing.prompt for path in sorted(out.iterdir())]
    assert told[::2] == ["first of all", *PROMPTS.split("\n\n")[0].split("\n"), *PROMPTS.split("\n")[2:-1]]


def test_two_processes_draw_what_one_would(model, draw, out, prompts, tmp_path) -> None:
    assert draw("--prompts", str(prompts), *ARGS) == 0
    shared = tmp_path / "shared"
    told = processes(2, model, shared, "--prompts", str(prompts), *ARGS)
    assert [code for code, _, _ in told] == [0, 0], told
    assert files(shared) == files(out) and len(files(out)) == 15
    halves = [set(said.split()) for _, said, _ in told]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 15 and min(map(len, halves)) >= 6


@pytest.mark.slow
def test_torchrun_draws_what_one_process_would_and_goes_on(model, draw, out, prompts, tmp_path) -> None:
    assert draw("--prompts", str(prompts), *ARGS) == 0
    shared = tmp_path / "shared"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "-m", "minisd.generate", "--prompts", str(prompts), *ARGS, "--model", model, "--out", str(shared),
               "--device", "cpu"]
    first = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert first.returncode == 0 and files(shared) == files(out), first.stderr[-2000:]
    names = [line for line in first.stdout.splitlines() if line.endswith(".png")]
    assert len(names) == len(set(names)) == 15           # each was drawn by one process
    (shared / "00004-5.png").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    again = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert again.returncode == 0 and files(shared) == files(out), again.stderr[-2000:]
    after = {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    assert before.items() <= after.items() and len(after) == 15


def test_processes_say_who_they_are(model, out, prompts) -> None:
    told = processes(2, model, out, "--prompts", str(prompts), "--sampler", "eular")
    assert all(code == 2 and said.startswith(f"rank {n}: no sampler") for n, (code, _, said) in enumerate(told))


def test_what_is_there_is_not_drawn_again(draw, out, prompts, calls, capsys) -> None:
    assert draw("--prompts", str(prompts), *ARGS) == 0
    before = files(out)
    calls.clear()
    assert draw("--prompts", str(prompts), *ARGS) == 0
    assert calls == [] and files(out) == before and "15 of 15 pictures are in" in capsys.readouterr().err
    for name in ("00003-7.png", "00009-7.png"):
        (out / name).unlink()
    (out / ".tmp-1-5.png").write_bytes(b"left by a kill")
    assert draw("--prompts", str(prompts), *ARGS) == 0
    assert len(calls) == 2                        # their whole batches, so that every kernel rounds as before
    (out / ".tmp-1-5.png").unlink()
    assert files(out) == before


def test_a_stopped_list_goes_on_in_several_processes(model, draw, out, prompts, tmp_path, monkeypatch) -> None:
    plain, seen = StableDiffusion.draw, []

    def stop_at_third(self, *args):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(self, *args)

    whole = tmp_path / "whole"
    assert main(["--prompts", str(prompts), *ARGS, "--model", model, "--out", str(whole), "--device", "cpu"]) == 0
    monkeypatch.setattr(StableDiffusion, "draw", stop_at_third)
    assert draw("--prompts", str(prompts), *ARGS) == 6
    assert sorted(files(out)) == sorted(files(whole))[:4]
    assert all(code == 0 for code, _, _ in processes(2, model, out, "--prompts", str(prompts), *ARGS))
    assert files(out) == files(whole)


def test_a_longer_list_and_other_options_draw_what_is_new(draw, out, prompts, calls) -> None:
    assert draw("--prompts", str(prompts), *ARGS) == 0
    before = files(out)
    calls.clear()
    prompts.write_text("a house\n" + PROMPTS)
    assert draw("--prompts", str(prompts), *ARGS) == 0
    assert len(files(out)) == 18 and before.items() <= files(out).items()
    calls.clear()
    assert draw("--prompts", str(prompts), *ARGS, "--cfg", "2") == 0
    assert len(files(out)) == 36 and sum(map(len, calls)) == 18


def test_one_picture_cannot_be_shared(draw, out, capsys, monkeypatch) -> None:
    assert draw("a", "--steps", "1") == 0
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert draw("--from-image", str(out / "00001-0.png")) == 2
    assert "rank 0: one picture cannot be shared" in capsys.readouterr().err


def test_half_an_environment_is_refused(draw, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert draw("a") == 7 and "WORLD_SIZE is not set" in capsys.readouterr().err


def test_processes_take_a_gpu_each(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    names = [device_of("auto", Share(rank, 3, rank)) for rank in range(3)]
    assert names == ["cuda:0", "cuda:1", "cuda:0"] and device_of("auto", Share()) == "auto"
    assert device_of("cuda:7", Share(1, 2, 1)) == "cuda:7" and device_of("cpu", Share(1, 2, 1)) == "cpu"


KEYS = [Key(Drawing(prompt, "", 1, 1.0, "euler", 0, 64, 64), "0" * 64, "cpu", "float32") for prompt in "abca"]


def put(folder: Path, number: int, key: Key | None) -> Path:
    """A picture in the folder, as if it had been drawn."""
    text = {} if key is None else metadata.chunks(
        metadata.Drawn(key.drawing, "tiny", key.model_sha256, key.device, key.dtype, 1, "0.1.0"))
    return images.write_png(Image.new("RGB", (8, 8)), folder, "0", text, number)


def test_numbers_follow_what_is_no_part_of_the_list(tmp_path) -> None:
    put(tmp_path, 7, None)
    (tmp_path / "00012-notes.txt").write_text("no picture")
    assert [place.number for place in places(tmp_path, KEYS)] == [8, 9, 10, 11]
    second = put(tmp_path, 9, KEYS[1])
    assert [(place.number, place.path) for place in places(tmp_path, KEYS)] == [(8, None), (9, second), (10, None),
                                                                               (11, None)]


def test_a_picture_that_is_wanted_twice_is_there_twice(tmp_path) -> None:
    last = put(tmp_path, 4, KEYS[3])
    assert [place.path for place in places(tmp_path, KEYS)] == [None, None, None, last]
    elsewhere = put(tmp_path, 9, KEYS[0])
    assert [place.path for place in places(tmp_path, KEYS)] == [elsewhere, None, None, last]
    assert places(tmp_path / "none", KEYS)[0].path is None


def test_other_weights_devices_and_dtypes_are_other_pictures(tmp_path) -> None:
    put(tmp_path, 1, Key(KEYS[0].drawing, "1" * 64, "cpu", "float32"))
    put(tmp_path, 2, Key(KEYS[0].drawing, "0" * 64, "cuda", "float32"))
    put(tmp_path, 3, Key(KEYS[0].drawing, "0" * 64, "cpu", "bfloat16"))
    assert [(place.number, place.path) for place in places(tmp_path, KEYS[:1])] == [(4, None)]
