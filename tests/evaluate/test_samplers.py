"""The comparison of samplers, on a tiny model: its table, its files, and what is refused before anything is loaded."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image

from minisd import store
from minisd.errors import MinisdError
from minisd.evaluate.__main__ import main
from minisd.evaluate.samplers import Contest, Row, lines, write
from minisd.evaluate.samplers_brisque import ABSENT, Brisque
from minisd.evaluate.samplers_options import SamplersOptions
from minisd.evaluate.similarity import psnr, ssim
from minisd.images import to_tensor

NAMES = ("euler", "heun", "ddim", "euler a", "dpm++2m sde")
ARGS = ("--samplers", *NAMES, "--steps", "6", "2", "--prompts", "a red apple", "a cat", "--reference-steps", "16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.folder(tmp_path_factory.mktemp("samplers"))


@pytest.fixture(scope="module")
def compared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison by the program itself."""
    out = tmp_path_factory.mktemp("compared") / "new" / "folder"
    assert main(["samplers", str(model), "--out", str(out), *ARGS, "--cfg", "2"]) == 0
    return out


@pytest.fixture(scope="module")
def rows(compared: Path) -> dict[tuple[str, int], Row]:
    table = json.loads((compared / "samplers.json").read_text(encoding="utf-8"))
    return {(row["sampler"], row["steps"]): Row(**row) for row in table["rows"]}


def test_a_row_for_every_sampler_and_number_of_steps(rows) -> None:
    assert list(rows) == [(name, steps) for name in NAMES for steps in (2, 6)]
    assert [rows[name, 6].calls for name in NAMES] == [6, 11, 6, 6, 6]
    assert all(row.seconds > 0 for row in rows.values())


def test_what_converges_is_held_against_where_it_goes(rows) -> None:
    for name in ("euler", "heun", "ddim", "dpm++2m sde"):
        assert rows[name, 2].ssim_converged < rows[name, 6].ssim_converged < 1, name
        assert rows[name, 2].psnr_converged < rows[name, 6].psnr_converged, name
    assert rows["euler a", 6].ssim_converged is None     # every number of steps is another picture
    assert rows["euler", 6].ssim_euler > rows["euler a", 6].ssim_euler


def test_the_measures_are_those_of_pictures_drawn_alone(rows, model) -> None:
    sd = store.load(model, "cpu", "float32")
    prompts = ["a red apple", "a cat"]

    def drawn(steps: int, name: str) -> torch.Tensor:
        pictures = [sd.txt2img(words, "", steps, 2.0, name, seed)[0] for seed, words in enumerate(prompts)]
        return torch.stack([to_tensor(picture) for picture in pictures])

    found, limit = drawn(6, "heun"), drawn(16, "dpm++2m karras")
    assert rows["heun", 6].ssim_converged == pytest.approx(ssim(found, limit).mean().item(), abs=1e-6)
    assert rows["heun", 6].psnr_converged == pytest.approx(psnr(found, limit).mean().item(), abs=1e-3)
    assert rows["heun", 6].ssim_euler == pytest.approx(ssim(found, drawn(40, "euler")).mean().item(), abs=1e-6)


def test_the_csv_holds_the_same(compared, rows) -> None:
    with (compared / "samplers.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    for line, row in zip(read, rows.values(), strict=True):
        assert line["sampler"] == row.sampler and int(line["calls"]) == row.calls
        assert line["ssim_converged"] == ("" if row.ssim_converged is None else repr(row.ssim_converged))


def test_the_file_says_how_it_was_made(compared) -> None:
    protocol = json.loads((compared / "samplers.json").read_text(encoding="utf-8"))["protocol"]
    assert protocol["prompts"] == ["a red apple", "a cat"] and protocol["guidance"] == 2.0
    assert (protocol["reference"], protocol["reference_steps"]) == ("dpm++2m karras", 16)
    assert protocol["dtype"] == "float32" and len(protocol["model_sha256"]) == 64 and protocol["brisque"]


def test_the_curves_are_a_picture(compared) -> None:
    with Image.open(compared / "samplers.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > len(NAMES)


def test_a_comparison_is_never_overwritten(compared, model, capsys) -> None:
    before = (compared / "samplers.json").read_bytes()
    assert main(["samplers", str(model), "--out", str(compared), *ARGS]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (compared / "samplers.json").read_bytes() == before
    assert sorted(path.name for path in compared.iterdir()) == ["samplers.csv", "samplers.json", "samplers.png"]


def test_the_table_is_printed_in_columns() -> None:
    row = Row("euler", 5, 5, 0.25, None, None, 0.5, None)
    other = replace(row, sampler="euler karras", ssim_converged=0.1234, brisque=12.34)
    first, second = lines([row, other]).splitlines()[1:]
    assert first.split() == ["euler", "5", "5", "0.25", "0.500"]
    assert second.split() == ["euler", "karras", "5", "5", "0.25", "0.123", "0.500", "12.3"]
    assert first.index("0.500") == second.index("0.500")


def test_a_table_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "absent").write_text("a file where the folder should be")
    with pytest.raises(MinisdError, match="cannot be written"):
        write(tmp_path / "absent", [Row("euler", 5, 5, 0.25, None, None, 0.5, None)], {})


REFUSED = [
    ({"steps": (5, 0)}, "--steps 0"), ({"steps": ()}, "--steps names nothing"), ({"prompts": ()}, "--prompts"),
    ({"reference_steps": 1001}, "--reference-steps 1001"), ({"samplers": ("eular",)}, "eular"),
    ({"samplers": ("dpm adaptive",)}, "steps of its own"), ({"reference": "euler a"}, "adds noise"),
    ({"reference": "dpm adaptive"}, "steps of its own"), ({"cfg": -1.0}, "--cfg -1"), ({"seed": 2 ** 64 - 1}, "--seed"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_refused_before_a_model_is_loaded(change, told, tmp_path) -> None:
    with pytest.raises(MinisdError, match=told) as caught:
        replace(SamplersOptions("emoji", tmp_path / "out"), **change).check()
    assert caught.value.code == 2 and not (tmp_path / "out").exists()


def test_without_its_package_the_column_is_empty_and_says_why(monkeypatch, model, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "brisque", None)
    judge = Brisque()
    assert judge.absent == ABSENT and "minisd[judge]" in ABSENT and judge.mean([]) is None
    options = SamplersOptions(str(model), tmp_path, ("a",), reference_steps=2)
    contest = Contest(store.load(model, "cpu", "float32"), options)
    monkeypatch.setattr("minisd.evaluate.samplers.EULER", ("euler", 2))
    assert contest.row("euler", 2).brisque is None


def noise(amount: float) -> Image.Image:
    """A smooth picture with noise on it."""
    ramp = np.add.outer(np.sin(np.arange(96) / 9), np.cos(np.arange(96) / 7)) * 50 + 128
    rough = np.random.default_rng(0).normal(size=(96, 96, 3)) * amount
    return Image.fromarray((ramp[..., None] + rough).clip(0, 255).astype(np.uint8))


def test_brisque_calls_noise_worse_and_one_colour_nothing() -> None:
    pytest.importorskip("brisque", reason="pip install minisd[judge]")
    judge = Brisque()
    few, many = judge.mean([noise(2)]), judge.mean([noise(60)])
    assert few is not None and many is not None and few < many
    assert judge.mean([noise(2), Image.new("RGB", (96, 96), "red")]) == few
    assert judge.mean([Image.new("RGB", (96, 96), "red")]) is None
