"""Training on a device: every kind of it takes steps there, as the processor does, and goes on where it was killed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_model
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from minisd import store
from minisd.config import ModelConfig
from minisd.schema import read_file
from minisd.train import loop
from minisd.train.config import DataConfig, Preview, Recipe, TrainConfig
from minisd.train.distillation import Place, distill, prepared
from minisd.train.experiment import DistillTask, Experiment, Student
from minisd.train.ranks import ALONE
from minisd.train.stages import train
from minisd.train.state import State

TINY = Path(__file__).parent.parent / "train" / "tiny.toml"
STAGES = ("vae", "clip", "unet", "unet-text")
SHOWN = Preview(("a red square",), steps=1, guidance=2.0)
LOOP = TrainConfig(steps=4, batch=2, lr=1e-3, warmup=2, dtype="fp32", save_every=2, preview_every=4, log_every=1)
# Relative, of the losses of the first steps: float32 by other sums; later steps learn from what the first rounded.
CLOSE, RESUMED = 2e-3, {"cpu": 0.0, "cuda": 1e-3}  # a GPU's backward passes add up in any order


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n, colour in enumerate(("red", "blue", "green", "black")):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle((10 + n, 12, 50, 40 + n), fill=colour)
        picture.save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"a {colour} square")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def run(teacher: Path, pictures: Path, tmp_path: Path) -> Callable[..., list[dict[str, float]]]:
    """Rows of an experiment that distils on a device."""
    def distilled(out: str, device: torch.device | str, **changes: object) -> list[dict[str, float]]:
        experiment = Experiment("x", str(teacher), Student(("midless",)), replace(LOOP, **changes),
                                DataConfig(size=64), DistillTask(teacher_dtype="fp32", empty_captions=0.3), SHOWN, 3)
        distill(experiment, Place(pictures, tmp_path / out, tmp_path / f"cache-{out}", str(device)), "auto")
        return [json.loads(line) for line in (tmp_path / out / loop.METRICS).read_text().splitlines()]
    return distilled


def test_distillation_takes_the_processors_steps(run: Callable[..., list[dict[str, float]]], tmp_path: Path,
                                                 device: torch.device) -> None:
    there, here = run("there", device), run("here", "cpu")
    assert [row["step"] for row in there] == [row["step"] for row in here]
    for name in ("noise", "output", "features", "gradient"):
        first = [next(row[name] for row in rows if name in row) for rows in (there, here)]
        assert first[0] == pytest.approx(first[1], rel=CLOSE), name
    assert store.load(tmp_path / "there" / "model", str(device)).txt2img("a red square", steps=1)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_run_goes_on_where_it_was_killed(weights: str, run: Callable[..., list[dict[str, float]]], tmp_path: Path,
                                           device: torch.device) -> None:
    kind = {"weights": weights, "dtype": "bf16", "preview_every": 0}
    whole = run("whole", device, **kind)
    run("cut", device, **kind, steps=2)
    again = run("cut", device, **kind)
    assert again[-1]["held_out/output"] == pytest.approx(whole[-1]["held_out/output"], rel=RESUMED[device.type])
    ours, theirs = (load_file(tmp_path / out / "checkpoint-4" / "params.safetensors") for out in ("cut", "whole"))
    assert ours.keys() == theirs.keys()
    if not RESUMED[device.type]:
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_moments_lie_where_they_are_needed(teacher: Path, pictures: Path, tmp_path: Path, device: torch.device) -> None:
    experiment = Experiment("x", str(teacher), train=replace(LOOP, dtype="bf16"), data=DataConfig(size=64),
                            preview=SHOWN)
    made = prepared(experiment, Place(pictures, tmp_path / "out", tmp_path / "cache", str(device)), ALONE)
    with loop.reading_thread() as reader:
        ahead = loop.prefetched(made, reader)
        loop.update(made, ahead)
        before = places(made.state)
        (tmp_path / "saved").mkdir()
        made.state.save(tmp_path / "saved")
        (tmp_path / "saved" / "manifest.json").write_text('{"step": 1}')
        made.state.restore(tmp_path / "saved")
        assert places(made.state) == before
        loop.update(made, ahead)
    assert made.state.step == 2 and not made.bad_steps


def places(state: State) -> set[tuple[str, str]]:
    """Where parameters, averages and every kind of moment lie."""
    found = {("params", p.device.type) for p in state.params.values()}
    found |= {("ema", tensor.device.type) for tensor in state.ema.values()}
    return found | {(kind, tensor.device.type) for slots in state.optimizer.state.values()
                    for kind, tensor in slots.items()}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Every stage, two steps of it."""
    whole = read_file(Recipe, TINY)
    short = {"steps": 2, "preview_every": 2, "save_every": 2}
    return replace(whole, stages=tuple(replace(one, train=replace(one.train, **short)) for one in whole.stages))


def test_every_stage_of_a_recipe(recipe: Recipe, pictures: Path, tmp_path: Path, device: torch.device) -> None:
    train(recipe, STAGES, pictures, tmp_path, "auto", str(device))
    for name in STAGES:
        rows = [json.loads(line) for line in (tmp_path / name / loop.METRICS).read_text().splitlines()]
        assert rows[-1]["step"] == 2 and all(map(is_finite, rows))
    assert isinstance(store.read_config(tmp_path / "model"), ModelConfig)


def is_finite(row: dict[str, float]) -> bool:
    return all(abs(value) < 1e6 for value in row.values())
