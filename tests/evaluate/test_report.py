"""The whole program on a tiny model: six concepts drawn, every measure taken, the sheets and the report written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from minisd.drawing.plan import Defaults
from minisd.errors import MinisdError
from minisd.evaluate.__main__ import main
from minisd.evaluate.options import Options
from minisd.evaluate.report import Report, evaluate, manner_of, styles_of, written
from minisd.train.config import DataConfig, FinetuneTask, Preview, Recipe, Stage, VAETask

RECIPE = Recipe("tiny", (Stage("vae", vae=VAETask()), Stage("unet", data=DataConfig(styles=("flat", "cartoon")),
                                                            finetune=FinetuneTask())),
                preview=Preview(("red, flat", "green, cartoon", "blue, flat"), steps=2, guidance=2.0, sampler="euler"))


def options(model: Path, data: Path, out: Path) -> Options:
    return Options(str(model), data, out, count=6, batch=3, device="cpu", dtype="float32")


def test_every_measure_is_taken_and_written(model: Path, data: Path, tmp_path: Path):
    report = evaluate(replace(options(model, data, tmp_path), recipe=Path("tiny.toml")), RECIPE)
    written = json.loads((tmp_path / "report.json").read_text())
    assert [one["value"] for one in written["figures"]] == [one.value for one in report.figures]
    assert {one.measure for one in report.figures} == {
        "VAE PSNR, dB", "VAE SSIM", "retrieval top-1 of 6", "retrieval top-5 of 6", "CLIP score", "CLIP cosine",
        "Fréchet distance to 3 held-out pictures"}
    protocol = written["protocol"]
    told = {"prompt": "each concept's", "negative": "", "steps": 2, "guidance": 2.0, "sampler": "euler", "seed": 0,
            "width": 64, "height": 64}
    assert told.items() <= protocol["drawing"].items()
    assert protocol["drawing"]["start"] is None and protocol["drawing"]["guide"]["ramp"] == []
    assert (protocol["concepts"], protocol["unseen_combinations"], protocol["model"]) == (6, 3, "tiny")
    assert all(len(protocol[name]) == 64 for name in protocol if name.endswith("sha256"))
    assert str(tmp_path) not in json.dumps(written)
    assert Image.open(tmp_path / "contact.png").size == (3 * 64 + 2 * 4, 64 + 28)
    assert Image.open(tmp_path / "concepts.png").size[0] == 6 * 64 + 5 * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["concepts.png", "contact.png", "report.json"]


def test_the_same_options_give_the_same_figures_and_another_seed_does_not(model: Path, data: Path, tmp_path: Path):
    first = replace(options(model, data, tmp_path), steps=1)
    same, other = evaluate(first), evaluate(replace(first, seed=7))
    assert same == evaluate(first)
    assert same.protocol["questions_sha256"] == other.protocol["questions_sha256"]
    assert same.figures != other.figures


def test_options_come_before_the_recipe_and_the_recipe_before_the_model():
    plain, likes = Options("m", Path(), Path()), Defaults(30, 5.0, "ddim")
    assert manner_of(plain, None, likes) == likes
    assert manner_of(plain, RECIPE, likes) == Defaults(2, 2.0, "euler")
    assert manner_of(replace(plain, cfg=0.0, sampler="plms"), RECIPE, likes) == Defaults(2, 0.0, "plms")


def test_styles_are_those_that_the_denoiser_learnt():
    assert styles_of(RECIPE) == ("flat", "cartoon")
    assert styles_of(None) == styles_of(replace(RECIPE, stages=RECIPE.stages[:1])) == ()


def test_a_report_that_cannot_be_written_is_a_lack_of_resources(tmp_path: Path):
    (tmp_path / "nowhere").write_text("a file where the folder should be")
    with pytest.raises(MinisdError, match="cannot be written") as caught:
        written(Report((), {}), {}, tmp_path / "nowhere")
    assert caught.value.code == 4


def test_the_program_prints_the_table(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main([str(model), "--data", str(data), "--out", str(tmp_path / "out"), "--count", "6", "--steps", "1",
                 "--device", "cpu", "--dtype", "float32"])
    shown = capsys.readouterr().out
    assert code == 0
    assert "VAE PSNR" in shown and "retrieval top-5 of 6" in shown and "no contact sheet" in shown
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize("arguments, code, sentence", [
    (("nowhere", "--data", "."), 3, "no such model"),
    (("nowhere", "--data", ".", "--guidance", "1000"), 2, "out of range"),
    (("nowhere", "--data", ".", "--recipe", "nothing.toml"), 3, "cannot read nothing.toml"),
])
def test_errors_are_short_and_have_their_code(arguments: tuple[str, ...], code: int, sentence: str, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == code
    shown = capsys.readouterr().err
    assert sentence in shown
    assert len(shown.splitlines()) <= 6
